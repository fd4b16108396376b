import json

import grain
import numpy as np
import pytest

from mebt_jax.data import pipeline, sources
from mebt_jax.errors import UserError


@pytest.fixture
def ramps(tmp_path, write_video, make_config):
    """Three lossless videos of 40 frames; frame i of video v has level 5 * i + 7 * v plus a slope
    from left to right.
    """
    levels = 5 * np.arange(40)[:, None, None, None] + np.arange(32)[None, None, :, None]
    frames = {
        v: np.broadcast_to(levels + 7 * v, (40, 32, 32, 3)).astype(np.uint8) for v in range(3)
    }
    for v in frames:
        write_video(tmp_path / "videos" / f"{v}.mkv", np.ascontiguousarray(frames[v]))
    config = make_config(
        source="folder", path=str(tmp_path / "videos"), resolution=32, frame_stride=2
    )
    sources.prepare(config, tmp_path / "run")
    return config, sources.open_sources(config, tmp_path / "run"), frames


def take(iterator, count):
    return [next(iterator)["video"] for _ in range(count)]


def test_frames_arrive_in_the_batch_as_they_are_in_the_file(ramps):
    config, opened, frames = ramps
    starts = set()
    for batch in take(pipeline.train_batches(opened, config, 4), 8):
        assert batch.shape == (4, 8, 32, 32, 3) and batch.dtype == np.uint8
        for clip in batch.astype(int):
            windows = {(v, s): frames[v][s : s + 15 : 2] for v in frames for s in range(26)}
            nearest = min(windows, key=lambda key: np.abs(clip - windows[key]).mean())
            assert np.abs(clip - windows[nearest]).max() <= 3  # JPEG
            starts.add(nearest[1])
    assert len(starts) > 10


def test_an_epoch_visits_each_record_once_in_a_new_order(make_config):
    records = [{"video": np.full((8, 16, 16, 3), i, np.uint8)} for i in range(12)]
    batches = take(
        pipeline.train_batches(sources.Sources(records, records, ""), make_config(), 12), 3
    )
    orders = [batch[:, 0, 0, 0, 0].tolist() for batch in batches]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("prepared", [True, False])
def test_resuming_from_saved_state_is_exact(ramps, make_config, tmp_path, prepared):
    config, opened = (
        ramps[:2] if prepared else (make_config(), sources.open_sources(make_config(), tmp_path))
    )
    whole = take(pipeline.train_batches(opened, config, 6), 7)
    first = pipeline.train_batches(opened, config, 6)
    np.testing.assert_array_equal(take(first, 3), whole[:3])
    state = json.loads(json.dumps(first.get_state()))
    second = pipeline.train_batches(opened, config, 6)
    take(second, 1)
    second.set_state(state)
    assert second.get_state() == state == {"next_clip": 18}
    np.testing.assert_array_equal(take(second, 4), whole[3:])


def test_another_batch_size_goes_on_where_it_fits(make_config, tmp_path):
    config = make_config()
    opened = sources.open_sources(config, tmp_path)
    whole = np.concatenate(take(pipeline.train_batches(opened, config, 4), 4))
    halves = pipeline.train_batches(opened, config, 2)
    halves.set_state({"next_clip": 8})
    np.testing.assert_array_equal(np.concatenate(take(halves, 4)), whole[8:])
    with pytest.raises(UserError, match="batch size 3"):
        pipeline.train_batches(opened, config, 3).set_state({"next_clip": 8})


def test_the_seed_decides_the_order(ramps, make_config):
    config, opened, _ = ramps
    other = make_config(
        source="folder", path=config.data.path, resolution=32, frame_stride=2, seed=1
    )
    first, same, another = (
        take(pipeline.train_batches(opened, c, 4), 2) for c in (config, config, other)
    )
    np.testing.assert_array_equal(first, same)
    assert (np.array(first) != np.array(another)).any()


@pytest.mark.parametrize("hosts", [2, 3])
def test_the_shards_of_the_hosts_make_up_the_global_batch(make_config, tmp_path, hosts):
    config = make_config()
    opened = sources.open_sources(config, tmp_path)

    def batches(shard):
        return (
            take(pipeline.train_batches(opened, config, 12, shard), 3),
            [batch["video"] for batch in pipeline.validation_batches(opened, config, 12, 2, shard)],
        )

    whole = batches(pipeline.WHOLE)
    shards = [
        batches(((host, host + hosts), 2 * hosts)) for host in range(hosts)
    ]  # two parts each, not side by side
    order = np.argsort(
        np.concatenate(
            [np.arange(12).reshape(2 * hosts, -1)[[h, h + hosts]].reshape(-1) for h in range(hosts)]
        )
    )
    for part in (0, 1):
        joined = [
            np.concatenate(rows)[order]
            for rows in zip(*(shard[part] for shard in shards), strict=True)
        ]
        np.testing.assert_array_equal(joined, whole[part])


def test_a_host_reads_its_shard_alone():
    read = []

    class Watched:
        def __len__(self):
            return 24

        def __getitem__(self, index):
            read.append(int(index))
            return {"video": np.int32(index)}

    batches = pipeline.sharded(grain.MapDataset.source(Watched()), 8, ((1, 2), 4))
    np.testing.assert_array_equal(
        [batches[batch]["video"] for batch in range(len(batches))],
        [[2, 3, 4, 5], [10, 11, 12, 13], [18, 19, 20, 21]],
    )
    assert {*read} == {2, 3, 4, 5, 10, 11, 12, 13, 18, 19, 20, 21}


def test_a_batch_that_does_not_divide_over_the_hosts_raises(make_config, tmp_path):
    config = make_config()
    with pytest.raises(UserError, match="4 parts"):
        pipeline.train_batches(sources.open_sources(config, tmp_path), config, 6, ((0,), 4))


def test_a_data_set_smaller_than_a_batch_works(make_config, tmp_path):
    config = make_config(train_clips=3, validation_clips=2)
    opened = sources.open_sources(config, tmp_path)
    assert take(pipeline.train_batches(opened, config, 8), 1)[0].shape[0] == 8
    (batch,) = pipeline.validation_batches(opened, config, 5, 4)
    indices = [
        [(clip == record["video"]).all() for record in opened.validation].index(True)
        for clip in batch["video"]
    ]
    assert sorted(indices)[:2] == [0, 0] and sorted(indices)[-2:] == [1, 1]


@pytest.mark.parametrize("records", [20, 2 * pipeline.FEW_RECORDS])
def test_validation_mixes_classes_that_lie_one_after_the_other(make_config, records):
    labels = [{"video": np.full((8, 1, 1, 1), 10 * i // records, np.uint8)} for i in range(records)]
    batches = pipeline.validation_batches(sources.Sources(labels, labels, ""), make_config(), 10, 2)
    shown = np.concatenate([batch["video"][:, 0, 0, 0, 0] for batch in batches])
    assert len(set(shown.tolist())) >= 6 and len(shown) == 20


def test_validation_is_the_same_every_time_and_drops_the_incomplete_batch(make_config, tmp_path):
    config = make_config(validation_clips=10)
    opened = sources.open_sources(config, tmp_path)
    first, second = (
        [b["video"] for b in pipeline.validation_batches(opened, config, 4, 9)] for _ in range(2)
    )
    assert len(first) == 2
    np.testing.assert_array_equal(first, second)
    assert len(list(pipeline.validation_batches(opened, config, 4, 1))) == 1


def test_validation_takes_the_middle_window(ramps):
    config, opened, frames = ramps
    (batch,) = pipeline.validation_batches(opened, config, 2, 1)
    expected = []
    for record in opened.validation:
        middle = int(record["start"]) + (len(record["frames"]) - 15 + 1) // 2
        expected.append(frames[int(record["video"].split(b".")[0])][middle : middle + 15 : 2])
    for shown in batch["video"].astype(int):
        assert min(np.abs(shown - clip).max() for clip in expected) <= 3


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(ramps, make_config):
    config, opened, _ = ramps
    with_workers = make_config(
        source="folder", path=config.data.path, resolution=32, frame_stride=2, workers=2
    )
    theirs, ours = (take(pipeline.train_batches(opened, c, 4), 5) for c in (with_workers, config))
    np.testing.assert_array_equal(theirs, ours)
