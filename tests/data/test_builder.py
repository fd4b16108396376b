import errno

import numpy as np
import pytest

from mebt_jax.data import builder, preparation, video_files
from mebt_jax.data.builder import RecordSettings
from mebt_jax.data.video_files import Video
from mebt_jax.errors import UserError


def named(names, split=""):
    return [Video(name, (), split) for name in names]


def settings(path, **fields):
    values = dict(
        source="folder",
        path=str(path),
        resolution=16,
        jpeg_quality=95,
        record_frames=12,
        span=5,
        validation_fraction=0.25,
        seed=0,
    )
    return RecordSettings(**values | fields)


@pytest.mark.parametrize(("span", "record_frames"), [(1, 4), (5, 12), (8, 8), (16, 3), (6, 11)])
def test_every_window_starts_in_exactly_one_record_and_lies_whole_in_it(span, record_frames):
    for num_frames in range(span, 70):
        bounds = builder.record_bounds(num_frames, span, record_frames)
        starts = [start for first, end in bounds for start in range(first, end - span + 1)]
        assert starts == list(range(num_frames - span + 1))
        assert all(
            end <= num_frames and end - first <= max(record_frames, 2 * span - 1)
            for first, end in bounds
        )
        windows = [end - first - span + 1 for first, end in bounds]
        assert max(windows) - min(windows) <= 1


def test_cut_records_hands_out_the_frames_of_each_record():
    frames = [bytes([i]) for i in range(30)]
    for bounds in ([(0, 10), (6, 18), (14, 30)], [(0, 4), (4, 8)], [(0, 30)]):
        records = list(builder.cut_records(iter(frames), bounds))
        assert records == [(first, frames[first:end]) for first, end in bounds]


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(2, 0, 1), (2, 0.9, 1), (10, 0.1, 1), (10, 0.3, 3), (3, 1, 2)],
)
def test_split_is_by_video_and_leaves_none_empty(count, fraction, held_out):
    videos = named([f"v{i}" for i in range(count)])
    splits, how = preparation.hold_out(videos, fraction, seed=0)
    assert len(splits["validation"]) == held_out and str(held_out) in how
    assert sorted(v.name for part in splits.values() for v in part) == sorted(
        v.name for v in videos
    )
    assert preparation.hold_out(videos[::-1], fraction, seed=0)[0] == splits


def test_the_split_of_the_data_set_is_kept_where_both_sides_have_videos(
    tmp_path, write_video, quarters
):
    train, held_out = named(["a"], "train") + named(["b"], ""), named(["c"], "validation")
    splits, _, skipped = preparation.split_up(held_out + train, settings(tmp_path), tmp_path)
    assert splits == {"train": train, "validation": held_out} and skipped == []
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "train" / name, quarters(6))
    splits, how, _ = preparation.split_up(
        video_files.find_videos(tmp_path), settings(tmp_path), tmp_path
    )
    assert len(splits["validation"]) == 1 and "1 of 2 held out" in how


def test_one_video_is_used_for_both_and_said_so():
    splits, how = preparation.hold_out(named(["a"]), 0.5, seed=0)
    assert list(splits) == ["train"] and "the one video" in how


def test_records_hold_the_videos(tmp_path, write_video, quarters):
    for name, frames in (("a.mp4", 31), ("b.gif", 6)):
        write_video(tmp_path / "videos" / name, quarters(frames), rate=10)
    videos = video_files.find_videos(tmp_path / "videos")
    manifest = preparation.write_records(
        tmp_path / "records", videos, settings(tmp_path / "videos")
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


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path, write_video, quarters):
    folder = tmp_path / "videos"
    write_video(folder / "good.mp4", quarters(20))
    write_video(folder / "short.mp4", quarters(4))
    cut = write_video(folder / "cut.mp4", quarters(20))
    cut.write_bytes(cut.read_bytes()[:700])
    (folder / "text.avi").write_text("no video")
    manifest = preparation.write_records(
        tmp_path / "records", video_files.find_videos(folder), settings(folder)
    )
    reasons = {entry["video"]: entry["reason"] for entry in manifest["skipped"]}
    assert set(reasons) == {"short.mp4", "cut.mp4", "text.avi"}
    assert reasons["short.mp4"] == "has 4 frames, but a clip reaches over 5"
    assert manifest["videos"] == {"train": 1}


def test_no_usable_video_is_one_sentence(tmp_path, write_video, quarters):
    write_video(tmp_path / "short.mp4", quarters(4))
    with pytest.raises(
        UserError,
        match="None of the 1 videos in .*short.mp4: has 4 frames, but a clip reaches over 5",
    ):
        preparation.write_records(
            tmp_path / "records", video_files.find_videos(tmp_path), settings(tmp_path)
        )
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(
    tmp_path, write_video, quarters, monkeypatch, error
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
            preparation.write_records(tmp_path / "records", videos, settings(folder))
    assert not (tmp_path / "records").exists()
    preparation.write_records(tmp_path / "records", videos, settings(folder))
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


def test_single_frames_make_records_too(tmp_path, write_video, quarters):
    folder = tmp_path / "videos"
    write_video(folder / "a.mp4", quarters(3))
    preparation.write_records(
        tmp_path / "records",
        video_files.find_videos(folder),
        settings(folder, span=1, record_frames=1),
    )
    rows = list(builder.open_records(tmp_path / "records", "train"))
    assert sorted(row["start"] for row in rows) == [0, 1, 2]
    assert all(np.ndim(row["frames"]) == 1 and len(row["frames"]) == 1 for row in rows)
