"""The clips that are measured: one of each video, in an order that mixes classes."""

import numpy as np
import pytest

from mebt_jax.data import measured_clips, pipeline, record_folders, sources


@pytest.fixture(scope="module")
def names():
    return [f"{kind}/{i:02d}" for kind in ("apple", "bow", "cat", "dog") for i in range(50)]


def test_the_first_videos_are_of_all_classes(names):
    first = sorted(names, key=measured_clips.order_key)[:40]
    counts = [
        sum(name.startswith(kind) for name in first) for kind in ("apple", "bow", "cat", "dog")
    ]
    assert min(counts) >= 5 and sum(counts) == 40


def test_starts_are_spread_over_the_video(names):
    starts = np.array([measured_clips.start_of(name, 10) for name in names])
    assert np.bincount(starts, minlength=10).min() >= 8 and starts.max() == 9
    assert {measured_clips.start_of(name, 1) for name in names} == {0}


def test_a_long_video_gives_one_clip_of_one_of_its_records(tmp_path, make_config, write_video):
    """Frame i of video v has level 4 * i + v; the first is three records long."""
    lengths = {0: 40, 1: 12, 2: 40, 3: 9}
    for v, frames in lengths.items():
        levels = np.broadcast_to(
            (4 * np.arange(frames) + v).astype(np.uint8)[:, None, None, None], (frames, 16, 16, 3)
        )
        write_video(tmp_path / "videos" / f"{v}.mkv", np.ascontiguousarray(levels))
    config = make_config(
        source="folder", path=str(tmp_path / "videos"), jpeg_quality=0, record_frames=20
    )
    sources.prepare(config, tmp_path / "run")
    used = record_folders.read_manifest(sources.records_folder(config, tmp_path / "run"))["used"]
    opened = sources.open_sources(config, tmp_path / "run")
    assert len(opened.train) > len(used["train"])
    first_clips = {}
    for split in ("train", "validation"):
        clips = measured_clips.open_clips(config, tmp_path / "run", split)
        assert len(clips) == len(used[split])
        for i, name in enumerate(sorted(used[split], key=measured_clips.order_key)):
            first_clips[name] = clips[i]["video"]
    for v, frames in lengths.items():
        start = measured_clips.start_of(f"{v}.mkv", frames - 7)
        np.testing.assert_array_equal(
            first_clips[f"{v}.mkv"][:, 0, 0, 0], 4 * np.arange(start, start + 8) + v
        )
    assert measured_clips.real_split(config, tmp_path / "run") == "validation"


@pytest.mark.parametrize("count", [30, 1200])
def test_training_clips_of_moving_shapes_are_those_that_training_sees_first(
    tmp_path, make_config, count
):
    config = make_config(train_clips=count)
    batch = next(pipeline.train_batches(sources.open_sources(config, tmp_path), config, 4))["video"]
    clips = measured_clips.open_clips(config, tmp_path, "train")
    assert len(clips) == count
    np.testing.assert_array_equal(np.stack([clips[i]["video"] for i in range(4)]), batch)


def test_every_clip_once_and_the_last_batch_is_filled_up(tmp_path, make_config):
    config = make_config(validation_clips=7)
    clips = measured_clips.open_clips(config, tmp_path, "validation")
    batches = [batch["video"] for batch in clips.batches(3, 100)]
    assert [len(batch) for batch in batches] == [3, 3, 3]
    rows = np.concatenate(batches)
    for i in range(9):
        np.testing.assert_array_equal(rows[i], clips[min(i, 6)]["video"])
    np.testing.assert_array_equal(
        np.concatenate([b["video"] for b in clips.batches(4, 4)]), rows[:4]
    )
