"""From video files to records: what they hold, what is skipped, and what an interruption leaves."""

import errno

import numpy as np
import pytest

from mebt_jax.data import builder, preparation, video_files
from mebt_jax.errors import UserError


def test_records_hold_the_videos(tmp_path, write_video, quarters, record_settings):
    for name, frames in (("a.mp4", 31), ("b.gif", 6)):
        write_video(tmp_path / "videos" / name, quarters(frames), rate=10)
    videos = video_files.find_videos(tmp_path / "videos")
    manifest = preparation.write_records(
        tmp_path / "records", videos, record_settings(tmp_path / "videos")
    )
    assert manifest["skipped"] == [] and sorted(manifest["records"].values()) == [1, 4]
    rows = [
        row
        for split in ("train", "validation")
        for row in builder.open_records(tmp_path / "records", split)
    ]
    assert sum(manifest["records"].values()) == len(rows) and sum(manifest["frames"].values()) == 37
    for row in rows:
        assert row["frames_per_second"] == pytest.approx(10, rel=0.01)
        assert all(
            content[:2] == b"\xff\xd8" and content[-2:] == b"\xff\xd9" for content in row["frames"]
        )
    expected = builder.record_bounds(31, 5, 12)
    found = sorted(
        (row["start"], row["start"] + len(row["frames"]))
        for row in rows
        if row["video"] == b"a.mp4"
    )
    assert found == expected


def test_what_cannot_be_used_is_listed_with_its_reason(
    tmp_path, write_video, quarters, record_settings
):
    folder = tmp_path / "videos"
    write_video(folder / "good.mp4", quarters(20))
    write_video(folder / "short.mp4", quarters(4))
    cut = write_video(folder / "cut.mp4", quarters(20))
    cut.write_bytes(cut.read_bytes()[:700])
    (folder / "text.avi").write_text("no video")
    manifest = preparation.write_records(
        tmp_path / "records", video_files.find_videos(folder), record_settings(folder)
    )
    reasons = {entry["video"]: entry["reason"] for entry in manifest["skipped"]}
    assert set(reasons) == {"short.mp4", "cut.mp4", "text.avi"}
    assert reasons["short.mp4"] == "has 4 frames, but a clip reaches over 5"
    assert manifest["videos"] == {"train": 1}


def test_no_usable_video_is_one_sentence(tmp_path, write_video, quarters, record_settings):
    write_video(tmp_path / "short.mp4", quarters(4))
    with pytest.raises(
        UserError,
        match="None of the 1 videos in .*short.mp4: has 4 frames, but a clip reaches over 5",
    ):
        preparation.write_records(
            tmp_path / "records", video_files.find_videos(tmp_path), record_settings(tmp_path)
        )
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(
    tmp_path, write_video, quarters, record_settings, monkeypatch, error
):
    folder = tmp_path / "videos"
    write_video(folder / "a.mp4", quarters(20))
    videos = video_files.find_videos(folder)
    encode, calls = builder.clips.encode_image, []

    def encode_some(image, quality):
        calls.append(None)
        if len(calls) > 15:
            raise error
        return encode(image, quality)

    with monkeypatch.context() as patch:
        patch.setattr(builder.clips, "encode_image", encode_some)
        with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
            preparation.write_records(tmp_path / "records", videos, record_settings(folder))
    assert not (tmp_path / "records").exists()
    preparation.write_records(tmp_path / "records", videos, record_settings(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "videos"]
    assert (
        sum(len(row["frames"]) for row in builder.open_records(tmp_path / "records", "train")) >= 20
    )


def test_listing_hash_sees_changed_files(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"1")
    first = preparation.listing_hash(video_files.find_videos(tmp_path))
    assert preparation.listing_hash(video_files.find_videos(tmp_path)) == first
    (tmp_path / "a.mp4").write_bytes(b"12")
    second = preparation.listing_hash(video_files.find_videos(tmp_path))
    (tmp_path / "b.mp4").write_bytes(b"1")
    assert len({first, second, preparation.listing_hash(video_files.find_videos(tmp_path))}) == 3


def test_single_frames_make_records_too(tmp_path, write_video, quarters, record_settings):
    folder = tmp_path / "videos"
    write_video(folder / "a.mp4", quarters(3))
    preparation.write_records(
        tmp_path / "records",
        video_files.find_videos(folder),
        record_settings(folder, span=1, record_frames=1),
    )
    rows = list(builder.open_records(tmp_path / "records", "train"))
    assert sorted(row["start"] for row in rows) == [0, 1, 2]
    assert all(np.ndim(row["frames"]) == 1 and len(row["frames"]) == 1 for row in rows)
