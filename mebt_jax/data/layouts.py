"""Layouts of data sets on disk: from a folder to its list of videos, with the split and the class
of each if the set has them.

Frame lists `train.txt` and `test.txt`, the input of the official program, are read in every set.
"""

import csv
import dataclasses
import re
from pathlib import Path

from mebt_jax.data import video_files
from mebt_jax.data.video_files import Video
from mebt_jax.errors import UserError

SPLIT_FOLDERS = {
    "train": "train",
    "sky_train": "train",
    "test": "validation",
    "validation": "validation",
    "val": "validation",
    "sky_test": "validation",
}

UCF_NAME = re.compile(r"v_(?P<label>[A-Za-z]+)_g(?P<group>\d+)_c\d+")


def any_folder(path: Path) -> list[Video]:
    """The videos of the official frame lists if there are such lists, else all videos.

    Subfolders train and test split the videos. They lie directly in the folder or one level below,
    where an archive may put them.
    """
    lists = [(path / "train.txt", "train"), (path / "test.txt", "validation")]
    if _is_frame_list(path / "train.txt"):
        return [
            video
            for file, split in lists
            if file.exists()
            for video in video_files.read_frame_list(file, split)
        ]
    videos = video_files.find_videos(path)
    for i, video in enumerate(videos):
        splits = [
            SPLIT_FOLDERS[part]
            for part in video.name.lower().split("/")[:2]
            if part in SPLIT_FOLDERS
        ]
        videos[i] = dataclasses.replace(video, split=splits[0] if splits else "")
    return videos


def images(path: Path) -> list[Video]:
    """Every image file, at any depth, as a video of one frame. Subfolders train and test split the
    images as in `any_folder`.
    """
    return [
        dataclasses.replace(folder, name=file.relative_to(path).as_posix(), files=(file,))
        for folder in any_folder(path)
        if folder.is_frames
        for file in folder.files
    ]


def ucf101(path: Path) -> list[Video]:
    """UCF-101 by the official lists of split 1; without the lists, by their rule: groups 1 to 7 are
    held out.

    Clips of one group are cut from the same recording, so a group on both sides would leak. Case is
    ignored when names are compared, since some copies write HandstandPushups where the lists write
    HandStandPushups.
    """
    names = {name.lower(): name for name in ucf101_classes(path)}
    if _is_frame_list(path / "train.txt"):
        return [
            dataclasses.replace(video, label=_ucf_class(video.name, names))
            for video in any_folder(path)
        ]
    listed = {
        name: split
        for file, split in (("trainlist01.txt", "train"), ("testlist01.txt", "validation"))
        for list_path in path.rglob(file)
        for name in _listed_names(list_path)
    }
    videos = []
    for video in video_files.find_videos(path):
        stem = Path(video.name).name if video.is_frames else video.files[0].stem
        match = UCF_NAME.fullmatch(stem)
        if listed:
            split = listed.get(stem.lower())
        else:
            split = None if not match else "validation" if int(match["group"]) <= 7 else "train"
        if split:
            videos.append(dataclasses.replace(video, split=split, label=_ucf_class(stem, names)))
    return videos


def ucf101_classes(path: Path) -> list[str]:
    """Class names in the order of the official classInd.txt (`1 ApplyEyeMakeup`), which is
    alphabetical; [] without that file.
    """
    for file in path.rglob("classInd.txt"):
        lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
        return [line[1] for line in sorted(lines, key=lambda line: int(line[0]))]
    return []


def sky_timelapse(path: Path) -> list[Video]:
    """Sky Time-lapse: sky_train/<video>/<clip>/<frames>.jpg, split by folder. At a gap in the
    numbers of frames another video starts.
    """
    videos = any_folder(path)
    if _is_frame_list(path / "train.txt"):
        return videos
    return [
        run
        for video in videos
        for run in (video_files.split_at_gaps(video) if video.is_frames else [video])
    ]


def taichi_hd(path: Path) -> list[Video]:
    """Taichi-HD as its loader writes it: folders train and test with chunks
    `<video>#<first frame>#<end>.mp4`, which are files or folders of frames.

    The split of chunks outside of these folders is the column `partition` of the set's
    taichi-metadata.csv, if that file is there.

    Raises:
        UserError: the file has no such columns.
    """
    videos = any_folder(path)
    partitions = {}
    for file in path.rglob("taichi-metadata*.csv"):
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                if not {"video_id", "partition"} <= row.keys():
                    raise UserError(
                        f"{file} has no columns video_id and partition; take the file of the "
                        "first-order-model repository, or sort the videos into folders train and "
                        "test."
                    )
                partitions[row["video_id"]] = SPLIT_FOLDERS.get(row["partition"], "")
    for i, video in enumerate(videos):
        parts = Path(video.name).name.split("#")
        if not video.split and len(parts) >= 3:
            # The loader writes the parts of a name in reverse.
            names = ("#".join(parts[:-2]), "#".join(parts[:-2][::-1]))
            split = next((partitions[name] for name in names if name in partitions), "")
            videos[i] = dataclasses.replace(video, split=split)
    return videos


def _is_frame_list(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open(errors="replace") as file:
        first = file.readline().strip()
    return Path(first).suffix.lower() in video_files.IMAGE_SUFFIXES


def _ucf_class(name: str, names: dict[str, str]) -> str:
    match = UCF_NAME.search(name)
    return names.get(match["label"].lower(), match["label"]) if match else ""


def _listed_names(path: Path) -> set[str]:
    """Stems in lower case of the videos in an official list, with lines
    `Class/v_Class_g01_c01.avi [label]`.
    """
    return {
        Path(line.split()[0]).stem.lower() for line in path.read_text().splitlines() if line.strip()
    }
