"""The data sets by name: from `config.data` to random-access sources of records, for data/pipeline.py.

A record is either {"video": uint8 [F', H, W, 3]} (moving shapes) or {"frames": F' JPEG files, "video": name, ...}
(data/builder.py), with F' at least the span of a clip.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mebt_jax import config as config_lib
from mebt_jax.config import Config, DataConfig
from mebt_jax.data import builder, clips, video_files
from mebt_jax.data.moving_shapes import MovingShapes
from mebt_jax.data.video_files import Video
from mebt_jax.errors import UserError

# Far beyond any number of training clips: the validation clips stay the same when that number changes.
VALIDATION_OFFSET = 2**32

SPLIT_FOLDERS = {
    "train": "train", "sky_train": "train",
    "test": "validation", "validation": "validation", "val": "validation", "sky_test": "validation",
}  # fmt: skip

DOWNLOADS = {
    "ucf101": "UCF-101 is not here: download UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip from "
    "https://www.crcv.ucf.edu/data/UCF101.php, unpack both into one folder DIR, and pass --config.data.path=DIR",
    "sky_timelapse": "Sky Time-lapse is not here: download it by the link in "
    "https://github.com/weixiong-ur/mdgan, unpack it into a folder DIR (which then holds sky_train and sky_test, or put "
    "train.txt and test.txt with one frame path per line there), and pass --config.data.path=DIR",
    "taichi_hd": "Taichi-HD is not here: fetch its videos as "
    "https://github.com/AliaksandrSiarohin/first-order-model/blob/master/data/taichi-loading/README.md says, "
    "into a folder DIR (with train and test below it, or train.txt and test.txt with one frame path per line), and pass "
    "--config.data.path=DIR",
}


@dataclasses.dataclass(frozen=True)
class Sources:
    """Random-access sources of records (`len`, `[i]`), and a hash of all that decides what they hold."""

    train: Any
    validation: Any
    content_hash: str


def prepare(config: Config, workdir: Path) -> None:
    """Writes the records of the data set unless that is done already; nothing to do for moving shapes.

    Raises:
        UserError: the videos are missing, or none of them can be used.
    """
    data = config.data
    if data.source == "moving_shapes":
        return
    folder = records_folder(config, workdir)
    finished = folder.exists()
    if finished and not Path(data.path).is_dir():
        return  # the records are all that training needs; the videos may be gone
    videos = list_videos(data)
    if finished:
        if read_manifest(folder)["listing"] == builder.listing_hash(videos):
            return
        print(f"The files in {data.path} changed since {folder} was written; preparing them anew.")
    builder.write_records(folder, videos, _settings(data))


def open_sources(config: Config, workdir: Path) -> Sources:
    """Opens what `prepare` left.

    Raises:
        UserError: there are no records of these settings.
    """
    data = config.data
    if data.source == "moving_shapes":
        frames = clips.span(data.frames, data.frame_stride)
        train = MovingShapes(data.train_clips, frames, data.resolution, data.seed)
        validation = MovingShapes(data.validation_clips, frames, data.resolution, data.seed, offset=VALIDATION_OFFSET)
        return Sources(train, validation, config_lib.content_hash(train, validation))
    folder = records_folder(config, workdir)
    if not folder.exists():
        raise UserError(f"There are no records of {data.source} for these settings in {folder.parent}; run --stage=data "
                        f"(if it says that it is done already, remove its done.json in {workdir / 'data'}).")
    manifest = read_manifest(folder)
    train, validation = (builder.open_records(folder, name if name in manifest["records"] else "train")
                         for name in ("train", "validation"))
    return Sources(train, validation, config_lib.content_hash(manifest["settings"], manifest["listing"]))


def records_folder(config: Config, workdir: Path) -> Path:
    """Where the records for these settings are or will be; other settings have another folder."""
    parent = Path(config.data.prepared_dir) if config.data.prepared_dir else workdir / "data"
    return parent / f"records_{config_lib.content_hash(_settings(config.data))}"


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / builder.MANIFEST).read_text())


def list_videos(data: DataConfig) -> list[Video]:
    """The videos of a data set on disk, decodable or not.

    Raises:
        UserError: the folder is missing or holds none.
    """
    path = Path(data.path)
    if not data.path or not path.is_dir():
        problem = f"config.data.path {data.path!r} is not a folder" if data.path else "config.data.path is empty"
        advice = DOWNLOADS.get(data.source, "pass --config.data.path=DIR with a folder of videos or of folders of frames")
        raise UserError(f"{problem}; {advice}.")
    readers: dict[str, Callable[[Path], list[Video]]] = {"ucf101": _ucf101}
    videos = readers.get(data.source, _folder)(path)
    if not videos:
        files = sum(1 for file in path.rglob("*") if file.is_file())
        advice = DOWNLOADS.get(data.source, "give a folder that holds some, directly or in subfolders")
        raise UserError(f"{path} holds no videos ({files or 'no'} files, none of them "
                        f"{', '.join(sorted(video_files.VIDEO_SUFFIXES | video_files.IMAGE_SUFFIXES))}); {advice}.")
    return videos


def _folder(path: Path) -> list[Video]:
    """Official frame lists if they are there, else all videos.

    Subfolders train and test split them, directly in the folder or one below it, where an archive may put them.
    """
    lists = [(path / "train.txt", "train"), (path / "test.txt", "validation")]
    if (path / "train.txt").exists() and _is_frame_list(path / "train.txt"):
        return [video for file, split in lists if file.exists() for video in video_files.read_frame_list(file, split)]
    videos = video_files.find_videos(path)
    for i, video in enumerate(videos):
        splits = [SPLIT_FOLDERS[part] for part in video.name.lower().split("/")[:2] if part in SPLIT_FOLDERS]
        videos[i] = dataclasses.replace(video, split=splits[0] if splits else "")
    return videos


def _is_frame_list(path: Path) -> bool:
    with path.open(errors="replace") as file:
        first = file.readline().strip()
    return Path(first).suffix.lower() in video_files.IMAGE_SUFFIXES


def _ucf101(path: Path) -> list[Video]:
    """UCF-101 by the official lists of split 1; without them, by its rule: groups 1 to 7 are held out.

    Clips of one group are cut from the same recording, so a split across groups would leak.
    """
    train = {name for file in path.rglob("trainlist01.txt") for name in _listed_names(file)}
    held_out = {name for file in path.rglob("testlist01.txt") for name in _listed_names(file)}
    videos = []
    for video in video_files.find_videos(path):
        stem = video.files[0].stem
        group = re.search(r"_g(\d+)_c\d+$", stem)
        if train or held_out:
            split = "train" if stem in train else "validation" if stem in held_out else None
        else:
            split = "validation" if group and int(group[1]) <= 7 else "train"
        if split and not video.is_frames:
            videos.append(dataclasses.replace(video, split=split))
    return videos


def _listed_names(path: Path) -> set[str]:
    """Stems of the videos in an official list, whose lines are `Class/v_Class_g01_c01.avi [label]`."""
    return {Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()}


def _settings(data: DataConfig) -> builder.RecordSettings:
    return builder.RecordSettings(
        source=data.source, path=str(Path(data.path).resolve()), resolution=data.resolution, jpeg_quality=data.jpeg_quality,
        record_frames=data.record_frames, span=clips.span(data.frames, data.frame_stride),
        validation_fraction=data.validation_fraction, seed=data.seed,
    )  # fmt: skip
