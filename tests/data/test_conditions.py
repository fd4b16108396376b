"""Labels and actions on their way from the records to the batch: through shuffling, hosts, resumed
runs, mixtures and stored tokens.
"""

import dataclasses
import json

import numpy as np
import pytest

from mebt_jax.data import conditions, measured_clips, pipeline, record_folders, sources, token_cache
from mebt_jax.data.conditions import NO_LABEL
from mebt_jax.data.data_config import MixturePart
from mebt_jax.data.sources import Sources

CLASSES = ("ape", "bee", "cat", "dog")


def records(count, labelled=True):
    """Frame t of record i has level 20 * i + t, action 1000 * i + t, and the label i % 4."""
    return [
        {"video": np.ascontiguousarray(np.broadcast_to(levels, (12, 16, 16, 3)))}
        | ({"label": i % 4, "actions": 1000 * i + np.arange(12)} if labelled else {})
        for i in range(count)
        for levels in [(20 * i + np.arange(12, dtype=np.uint8))[:, None, None, None]]
    ]


def opened(labelled=True):
    return Sources(
        records(10, labelled), records(6, labelled), "ab12", classes=CLASSES if labelled else ()
    )


@pytest.fixture
def config(make_config):
    """Clips of 4 of 7 frames."""
    config = make_config(frames=4, frame_stride=2)
    tokenizer = dataclasses.replace(config.tokenizer, compression=(2, 8, 8))
    return dataclasses.replace(config, tokenizer=tokenizer)


def encode(video):
    """Codes from which a clip is recognised: the level of every second of its frames."""
    return video[:, ::2, ::8, ::8, 0].astype(np.int32)


def batches(sources, config, shard=pipeline.WHOLE):
    train = pipeline.train_batches(sources, config, 4, shard)
    held_out = pipeline.validation_batches(sources, config, 4, 3, shard)
    return [next(train) for _ in range(7)] + list(held_out)


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def check_rows(batch):
    """Label and actions of each row are those of the record and of the frames that it shows."""
    assert batch["label"].dtype == batch["actions"].dtype == np.int32
    levels = batch["video"][:, :, 0, 0, 0].astype(int)  # [B, F]
    record, frame = levels[:, :1] // 20, levels % 20
    np.testing.assert_array_equal(batch["label"], record[:, 0] % 4)
    np.testing.assert_array_equal(batch["actions"], 1000 * record + frame)


def test_labels_and_actions_stay_with_their_clip(config):
    found = batches(opened(), config)
    assert len(found) == 8 and all(batch["actions"].shape == (4, 4) for batch in found)
    for batch in found:
        check_rows(batch)
    assert {*np.concatenate([batch["label"] for batch in found])} == {0, 1, 2, 3}


def test_conditions_change_no_pixel(config):
    bare = batches(opened(labelled=False), config)
    assert all(batch.keys() == {"video"} for batch in bare)
    assert_equal([{"video": batch["video"]} for batch in batches(opened(), config)], bare)


@pytest.mark.parametrize("stored", [False, True])
def test_hosts_and_resumed_runs_have_the_conditions_of_the_whole(config, tmp_path, stored):
    source = opened()
    if stored:
        source = token_cache.prepare(config, tmp_path, source, "a1", encode)
    whole = batches(source, config)
    halves = [batches(source, config, ((host,), 2)) for host in range(2)]
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*halves, strict=True)
    ]
    assert_equal(joined, whole)
    resumed = pipeline.train_batches(source, config, 4)
    resumed.set_state({"next_clip": 8})
    assert_equal([next(resumed) for _ in range(5)], whole[2:7])


def test_stored_tokens_have_the_conditions_of_their_clips(config, tmp_path):
    stored = token_cache.prepare(config, tmp_path, opened(), "a1", encode)
    assert stored.classes == CLASSES
    expected = [
        {"tokens": encode(batch.pop("video"))} | batch for batch in batches(opened(), config)
    ]
    assert_equal(batches(stored, config), expected)


def test_tokens_of_an_earlier_version_are_read_without_conditions(config, tmp_path):
    token_cache.prepare(config, tmp_path, opened(labelled=False), "a1", encode)
    (folder,) = (tmp_path / "data").glob("tokens_*")
    manifest = record_folders.read_manifest(folder)
    del manifest["classes"]
    (folder / record_folders.MANIFEST).write_text(json.dumps(manifest))

    def fail(_):
        raise AssertionError("encoded again")

    stored = token_cache.prepare(config, tmp_path, opened(), "a1", fail)
    assert stored.classes == ()
    assert all(batch.keys() == {"tokens"} for batch in batches(stored, config))


def test_an_encoding_that_an_earlier_version_began_is_not_mixed_in(config, tmp_path):
    calls = []

    def interrupted(video):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(video)

    bare = dataclasses.replace(config.prior.training, batch_size=4)
    config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, training=bare))
    with pytest.raises(KeyboardInterrupt):
        token_cache.prepare(config, tmp_path, opened(labelled=False), "a1", interrupted)
    stored = token_cache.prepare(config, tmp_path, opened(), "a1", encode)
    for batch in batches(stored, config):
        np.testing.assert_array_equal(batch["label"], batch["tokens"][:, 0, 0, 0] // 20 % 4)
    (folder,) = (tmp_path / "data").glob("tokens_*")
    assert not list(folder.glob("parts*"))


def test_labels_count_from_the_first_class_of_their_source():
    source = [{"video": 0, "label": 1}, {"video": 1, "label": NO_LABEL}, {"video": 2, "label": 0}]
    shifted = conditions.Labelled(source, 5)
    assert [record["label"] for record in shifted] == [6, NO_LABEL, 5] and len(shifted) == 3
    assert list(conditions.Labelled(source, None)) == [{"video": i} for i in range(3)]


# ---- records on disk -----------------------------------------------------------------------------


@pytest.fixture
def ucf(tmp_path, write_video):
    """ucf(name, {class: level}): a folder like UCF-101 with two videos of each class, one of them
    held out, whose level says the class.
    """

    def write(name, classes):
        for label, level in classes.items():
            for group in ("g01", "g08"):
                frames = np.full((9, 16, 16, 3), level, np.uint8)
                write_video(tmp_path / name / label / f"v_{label}_{group}_c01.avi", frames)
        return str(tmp_path / name)

    return write


def prepared(config, workdir, parts):
    mixture = tuple(MixturePart(*part, weight=1.0) for part in parts)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))
    sources.prepare(config, workdir)
    return config


def shown(batch):
    """(label, class) of each row, where a level tells the class: 40 * (class + 1)."""
    levels = batch["video"].mean((1, 2, 3, 4)) / 40
    return {
        (int(label), round(float(level)) - 1)
        for label, level in zip(batch["label"], levels, strict=True)
    }


def test_the_classes_of_a_mixture_are_distinct(make_config, ucf, tmp_path):
    config = prepared(
        make_config(),
        tmp_path / "run",
        [
            ("ucf101", ucf("a", {"Archery": 40, "Biking": 80})),
            ("ucf101", ucf("b", {"Archery": 120, "Diving": 160, "YoYo": 200})),
        ],
    )
    source = sources.open_sources(config, tmp_path / "run")
    assert source.classes == (
        "ucf101/Archery", "ucf101/Biking", "ucf101/Archery", "ucf101/Diving", "ucf101/YoYo",
    )  # fmt: skip
    train = pipeline.train_batches(source, config, 5)
    (held_out,) = pipeline.validation_batches(source, config, 5, 1)
    every = {(i, i) for i in range(5)}
    assert shown(next(train)) | shown(next(train)) == every and shown(held_out) <= every
    for split in ("train", "validation"):
        clips = measured_clips.open_clips(config, tmp_path / "run", split)
        assert shown(next(clips.batches(5, 5))) == every


def test_a_single_set_keeps_its_names_and_numbers(make_config, ucf, tmp_path):
    config = make_config(source="ucf101", source_dir=ucf("a", {"Biking": 40, "Diving": 80}))
    sources.prepare(config, tmp_path / "run")
    source = sources.open_sources(config, tmp_path / "run")
    assert source.classes == ("Biking", "Diving")
    assert shown(next(pipeline.train_batches(source, config, 4))) == {(0, 0), (1, 1)}


def test_a_source_without_classes_leaves_the_whole_mixture_without_labels(
    make_config, ucf, write_video, tmp_path
):
    for name in "abc":
        write_video(tmp_path / "plain" / f"{name}.mkv", np.zeros((9, 16, 16, 3), np.uint8))
    folder = ("folder", str(tmp_path / "plain"))
    parts = [("ucf101", ucf("a", {"Biking": 40})), folder]
    for mixture in (parts, [folder], [("moving_shapes", "")]):
        config = prepared(make_config(), tmp_path / "run", mixture)
        source = sources.open_sources(config, tmp_path / "run")
        assert source.classes == ()
        assert all(batch.keys() == {"video"} for batch in batches(source, config))
