"""Which videos are held out."""

import pytest

from mebt_jax.data import splits, video_files
from mebt_jax.data.video_files import Video


def named(names, split=""):
    return [Video(name, (), split) for name in names]


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(2, 0, 1), (2, 0.9, 1), (10, 0.1, 1), (10, 0.3, 3), (3, 1, 2)],
)
def test_split_is_by_video_and_leaves_none_empty(count, fraction, held_out):
    videos = named([f"v{i}" for i in range(count)])
    by_split, how = splits.hold_out(videos, fraction, seed=0)
    assert len(by_split["validation"]) == held_out and str(held_out) in how
    assert sorted(v.name for part in by_split.values() for v in part) == sorted(
        v.name for v in videos
    )
    assert splits.hold_out(videos[::-1], fraction, seed=0)[0] == by_split


def test_the_split_of_the_data_set_is_kept_where_both_sides_have_videos(
    tmp_path, write_video, quarters, record_settings
):
    train, held_out = named(["a"], "train") + named(["b"], ""), named(["c"], "validation")
    by_split, _, skipped = splits.split_videos(
        held_out + train, record_settings(tmp_path), tmp_path
    )
    assert by_split == {"train": train, "validation": held_out} and skipped == []
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "train" / name, quarters(6))
    by_split, how, _ = splits.split_videos(
        video_files.find_videos(tmp_path), record_settings(tmp_path), tmp_path
    )
    assert len(by_split["validation"]) == 1 and "1 of 2 held out" in how


def test_one_video_trains_and_is_held_out_and_the_split_says_so():
    by_split, how = splits.hold_out(named(["a"]), 0.5, seed=0)
    assert list(by_split) == ["train"] and "the one video" in how
