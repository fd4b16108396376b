"""The sets of the paper on miniature copies in their real layout, from the archive to the batch."""

import json
import zipfile
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from mebt_jax.data import measured_clips, pipeline, record_folders, sources, video_files
from mebt_jax.errors import UserError
from mebt_jax.stages.data import summary


def greys(frames, first=20, size=32):
    """Flat frames; frame i has level first + 4 i."""
    return np.broadcast_to(
        (first + 4 * np.arange(frames))[:, None, None, None], (frames, size, size, 3)
    ).astype(np.uint8)


def write_jpegs(folder, names, levels):
    folder.mkdir(parents=True, exist_ok=True)
    for name, level in zip(names, levels, strict=True):
        assert cv2.imwrite(str(folder / name), np.full((36, 64, 3), level, np.uint8))


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(params=["zip"])
def ucf(tmp_path, write_video, write_rar, request):
    """UCF-101 packed: as its mirror has it, all videos in one folder of a zip, or as published, a
    folder for each class in a rar; the lists of the three splits in a zip of their own.
    """
    root = tmp_path / "flat"
    for name, frames in (
        ("ApplyEyeMakeup_g08_c01", 12),
        ("ApplyEyeMakeup_g01_c01", 12),
        ("HandStandPushups_g09_c01", 20),
        ("YoYo_g25_c04", 5),
        ("YoYo_g03_c02", 9),
    ):
        write_video(root / f"v_{name}.avi", greys(frames))
    (root / "v_YoYo_g09_c01.avi").write_bytes((root / "v_YoYo_g25_c04.avi").read_bytes()[:900])
    lists = tmp_path / "lists" / "ucfTrainTestlist"
    write_list(lists / "classInd.txt", ["1 ApplyEyeMakeup", "2 HandstandPushups", "3 YoYo"])
    write_list(
        lists / "trainlist01.txt",
        [
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1",
            "HandstandPushups/v_HandStandPushups_g09_c01.avi 2",
            "YoYo/v_YoYo_g25_c04.avi 3",
            "YoYo/v_YoYo_g09_c01.avi 3",
        ],
    )
    write_list(
        lists / "testlist01.txt",
        ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "YoYo/v_YoYo_g03_c02.avi"],
    )
    write_list(
        lists / "trainlist02.txt", ["YoYo/v_YoYo_g03_c02.avi 3"]
    )  # of another split, not to be used
    folder = tmp_path / "packed"
    folder.mkdir()
    if request.param == "rar":
        write_rar(
            folder / "UCF101.rar",
            {
                f"UCF-101/{path.name.split('_')[1]}/{path.name}": path.read_bytes()
                for path in sorted(root.iterdir())
            },
        )
    else:
        with zipfile.ZipFile(folder / "UCF101_videos.zip", "w") as file:
            for path in sorted(root.iterdir()):
                file.write(path, f"UCF101/{path.name}")
    with zipfile.ZipFile(folder / "UCF101TrainTestSplits-RecognitionTask.zip", "w") as file:
        for path in sorted(lists.iterdir()):
            file.write(path, f"ucfTrainTestlist/{path.name}")
    return folder


@pytest.mark.parametrize("ucf", ["zip", "rar"], indirect=True)
def test_ucf101_from_its_archives_to_the_batch(ucf, tmp_path, make_config):
    config = make_config(source="ucf101", source_dir=str(ucf))
    sources.prepare(config, tmp_path / "run")
    folder = sources.records_folder(config, tmp_path / "run")
    assert list(folder.parent.iterdir()) == [folder]  # nothing unpacked is left
    manifest = record_folders.read_manifest(folder)
    assert manifest["videos"] == {"train": 2, "validation": 2} and manifest["frames"] == {
        "train": 32,
        "validation": 21,
    }
    used = {name.split("/")[-1]: frames for name, frames in manifest["used"]["validation"].items()}
    assert used == {"v_ApplyEyeMakeup_g01_c01.avi": 12, "v_YoYo_g03_c02.avi": 9}
    reasons = {entry["video"].split("/")[-1]: entry["reason"] for entry in manifest["skipped"]}
    assert (
        reasons["v_YoYo_g25_c04.avi"] == "has 5 frames, but a clip reaches over 8"
        and len(reasons) == 2
    )
    assert manifest["sizes"] == {"32x32": 4} and manifest["frame_rates"] == {"25.0": 4}
    assert manifest["real_split"] == "train" and manifest["published_videos"] == {
        "train": 9537,
        "validation": 3783,
    }
    assert (
        "; 9535 train, 3781 validation videos of the published set are not among them; 2 skipped ("
        in summary(manifest)
    )

    assert measured_clips.real_split(config, tmp_path / "run") == "train"

    opened = sources.open_sources(config, tmp_path / "run")
    labels = {row["video"].decode().split("_")[1]: int(row["label"]) for row in opened.train}
    assert labels == {"ApplyEyeMakeup": 0, "HandStandPushups": 1}
    batch = next(pipeline.train_batches(opened, config, 8))
    for clip in batch["video"]:  # eight frames of a file, one after another
        frames = (clip.mean((1, 2, 3)) - 20) / 4
        start = np.rint((frames - np.arange(8)).mean())
        # mpeg4 is off by two of 255 levels
        np.testing.assert_allclose(frames, start + np.arange(8), atol=0.6)
        assert np.ptp(clip, axis=(1, 2, 3)).max() <= 2

    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    sources.prepare(config, tmp_path / "run")  # does nothing
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def sky(path):
    """sky_train and sky_test, a folder for each video and in it one for each clip, whose frames are
    numbered in the video.
    """
    for split, video, clip, numbers in (
        ("sky_train", "07U1fSrk9oI", 1, [*range(46, 58), *range(70, 79)]),
        ("sky_train", "07U1fSrk9oI", 2, range(100, 105)),
        ("sky_test", "2k3X1Qw", 1, range(9)),
    ):
        write_jpegs(
            path / split / video / f"{video}_{clip}",
            [f"{video}_frames_{i:08d}.jpg" for i in numbers],
            [20 + 2 * (i % 100) for i in numbers],
        )
    return path


def test_sky_timelapse_starts_another_video_at_a_gap(tmp_path, make_config):
    path = sky(tmp_path / "sky_timelapse")
    config = make_config(source="sky_timelapse", source_dir=str(path))
    sources.prepare(config, tmp_path / "run")
    manifest = record_folders.read_manifest(sources.records_folder(config, tmp_path / "run"))
    clip = "sky_train/07U1fSrk9oI/07U1fSrk9oI_1/07U1fSrk9oI_frames_"
    assert manifest["used"] == {
        "train": {f"{clip}46": 12, f"{clip}70": 9},
        "validation": {"sky_test/2k3X1Qw/2k3X1Qw_1": 9},
    }
    assert manifest["skipped"] == [
        {
            "video": "sky_train/07U1fSrk9oI/07U1fSrk9oI_2",
            "reason": "has 5 frames, but a clip reaches over 8",
        }
    ]
    assert manifest["split"] == "as the data set gives it" and manifest["hours"] == {
        "train": 0,
        "validation": 0,
    }


def test_the_official_frame_list_gives_the_same_videos_as_the_folders(tmp_path, make_config):
    path = sky(tmp_path / "sky_timelapse")
    for split in ("train", "test"):
        files = sorted((path / f"sky_{split}").rglob("*.jpg"))
        write_list(tmp_path / "lists" / f"{split}.txt", [str(file) for file in files[::-1]])
    found = {}
    for folder in (path, tmp_path / "lists"):
        config = make_config(source="sky_timelapse", source_dir=str(folder), resolution=32)
        found[folder] = {
            (video.split, video.files) for video in sources.list_videos(config.data, folder)
        }
    assert found[path] == found[tmp_path / "lists"] and len(found[path]) == 4


def test_taichi_by_its_table_with_every_fourth_frame(tmp_path, make_config, write_video):
    for name in ("aDyyTMUBoLE#000168#000352.mp4", "Zt4gsa#000002#000130.mp4"):
        write_video(tmp_path / "b" / name, greys(33))
    write_list(
        tmp_path / "b" / "taichi-metadata.csv",
        [
            "video_id,start,end,bbox,fps,width,height,partition",
            "aDyyTMUBoLE,168,352,200-0-900-700,29.97,1280,720,train",
            "Zt4gsa,2,130,0-0-9-9,25,64,64,test",
        ],
    )
    config = make_config(source="taichi_hd", source_dir=str(tmp_path / "b"), frame_stride=4)
    sources.prepare(config, tmp_path / "run")
    (batch,) = pipeline.validation_batches(
        sources.open_sources(config, tmp_path / "run"), config, 1, 1
    )
    levels = batch["video"].astype(float).mean((0, 2, 3, 4))  # [F]
    np.testing.assert_allclose(np.diff(levels), 16, atol=2)


def test_quality_0_keeps_every_pixel(tmp_path, make_config, write_video):
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        write_video(tmp_path / "v" / split / "a.mkv", frames)
    config = make_config(source="folder", path=str(tmp_path / "v"), resolution=32, jpeg_quality=0)
    sources.prepare(config, tmp_path / "run")
    (batch,) = pipeline.validation_batches(
        sources.open_sources(config, tmp_path / "run"), config, 1, 1
    )
    np.testing.assert_array_equal(batch["video"][0], frames[1:9])


def test_long_turned_and_uneven_videos_arrive_frame_by_frame(
    tmp_path, make_config, write_video, quarters
):
    path = tmp_path / "videos"
    write_video(path / "train" / "long.mp4", np.concatenate([greys(50)] * 8))
    write_video(path / "train" / "turned.mp4", quarters(9, 32, 32), rotation=90)
    with av.open(str(path / "train" / "uneven.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height = stream.width = 32
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(greys(24)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (
                40 * i + 300 * (i // 7),
                Fraction(1, 1000),
            )  # a pause after every seventh frame
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_video(path / "test" / "a.mp4", quarters(9))
    config = make_config(path=str(path), source="folder", record_frames=100)
    sources.prepare(config, tmp_path / "run")
    rows = list(sources.open_sources(config, tmp_path / "run").train)
    frames = {
        name: sorted(
            (int(row["start"]), row["frames"]) for row in rows if row["video"].endswith(name)
        )
        for name in (b"long.mp4", b"turned.mp4", b"uneven.mp4")
    }
    assert [(start, len(part)) for start, part in frames[b"long.mp4"]] == [
        (0, 85),
        (78, 86),
        (157, 85),
        (235, 86),
        (314, 86),
    ]
    levels = [video_files.clips.decode_image(jpeg).mean() for jpeg in frames[b"uneven.mp4"][0][1]]
    np.testing.assert_allclose(levels, 20 + 4 * np.arange(24), atol=3)
    turned = video_files.clips.decode_image(
        frames[b"turned.mp4"][0][1][0]
    )  # red, green / blue, white, a quarter to the left
    assert turned[3, 3].argmax() == 1 and turned[12, 12].argmax() == 2 and turned[3, 12].min() > 150


def test_an_interrupted_preparation_goes_on_with_the_same_result(
    ucf, tmp_path, make_config, monkeypatch
):
    config = make_config(source="ucf101", source_dir=str(ucf))
    sources.prepare(config, tmp_path / "whole")
    read, names = video_files.read_frames, []

    def read_some(video, resolution):
        names.append(video.name)
        if len(names) == 4:
            raise KeyboardInterrupt
        return read(video, resolution)

    monkeypatch.setattr(record_folders.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(video_files, "read_frames", read_some)
    with pytest.raises(KeyboardInterrupt):
        sources.prepare(config, tmp_path / "run")
    sources.prepare(config, tmp_path / "run")
    # The videos that were finished are not read again.
    assert len(set(names)) == 6 and not set(names[:3]) & set(names[4:])
    one, other = (
        record_folders.read_manifest(sources.records_folder(config, tmp_path / run))
        for run in ("whole", "run")
    )
    one.pop("listing"), other.pop("listing")  # holds the times of the unpacked files
    assert json.dumps(one) == json.dumps(other)


def test_a_split_without_a_usable_video_is_said(tmp_path, make_config, write_video):
    write_video(tmp_path / "v" / "train" / "a.mp4", greys(9))
    write_video(tmp_path / "v" / "test" / "b.mp4", greys(3))
    with pytest.raises(
        UserError, match="None of the 1 videos in the validation split .*b.mp4: has 3 frames"
    ):
        sources.prepare(make_config(source="folder", path=str(tmp_path / "v")), tmp_path / "run")
