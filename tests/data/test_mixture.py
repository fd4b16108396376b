"""Several sources in one config: weights, order, held-out clips, images, tokens and manifests."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from mebt_jax.data import measured_clips, pipeline, sources, token_cache
from mebt_jax.data.data_config import MixturePart
from mebt_jax.errors import UserError
from mebt_jax.stages import data as data_stage


def write_images(folder, levels, split=""):
    for i, level in enumerate(levels):
        path = folder / split / f"{'sub/' if i % 2 else ''}{i}.png"  # of any size, at any depth
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((20 + i, 30, 3), level, np.uint8))


@pytest.fixture
def mixture(tmp_path, make_config, write_video):
    """(config, workdir): videos below level 100 and videos above it, 1 to 3, and beside them images
    from 200 on.
    """
    for name, first, count in (("dark", 0, 5), ("light", 110, 4)):
        for i in range(count):
            split = "test" if i == 0 else "train"
            frames = (
                np.full((12, 16, 16, 3), first + 20 * i, np.uint8)
                + np.arange(12, dtype=np.uint8)[:, None, None, None]
            )
            write_video(tmp_path / name / split / f"{i}.mkv", frames)
    write_images(tmp_path / "images", range(200, 230, 5), "train")
    write_images(tmp_path / "images", range(240, 250, 5), "val")
    parts = [
        {"source": source, "path": str(tmp_path / name), "weight": weight}
        for source, name, weight in (
            ("folder", "dark", 1),
            ("folder", "light", 3),
            ("images", "images", 2.0),
        )
    ]
    config = make_config(mixture=parts, jpeg_quality=0)
    config = dataclasses.replace(
        config, tokenizer=dataclasses.replace(config.tokenizer, compression=(1, 8, 8))
    )
    sources.prepare(config, tmp_path / "run")
    return config, tmp_path / "run"


@pytest.fixture
def make_config(make_config):
    def make(**fields):
        config = make_config(**{name: value for name, value in fields.items() if name != "mixture"})
        return with_mixture(config, fields.get("mixture", ()))

    return make


def with_mixture(config, parts):
    parts = tuple(MixturePart(**part) for part in parts)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=parts))


def take(iterator, count):
    return [next(iterator)["video"] for _ in range(count)]


def test_a_mixture_of_one_source_is_that_source(make_config, tmp_path):
    alone = make_config(validation_clips=5)
    mixed = with_mixture(alone, [{"source": "moving_shapes", "path": "", "weight": 7.0}])
    opened = [sources.open_sources(config, tmp_path) for config in (alone, mixed)]
    assert opened[0].content_hash == opened[1].content_hash
    for batches in (
        lambda opened, config: pipeline.train_batches(opened, config, 6),
        lambda opened, config: pipeline.validation_batches(opened, config, 2, 2),
        lambda opened, config: pipeline.validation_batches(opened, config, 8, 1),
    ):
        ours, theirs = (batches(*pair) for pair in zip(opened, (alone, mixed)))
        np.testing.assert_array_equal(next(ours)["video"], next(theirs)["video"])


def test_clips_come_by_the_weights_and_epochs_by_the_source(mixture):
    config, workdir = mixture
    opened = sources.open_sources(config, workdir)
    assert len(opened.train) == 7 and len(opened.validation) == 2 and opened.images is None
    clips = np.concatenate(take(pipeline.train_batches(opened, config, 8), 6))
    assert clips.shape == (48, 8, 16, 16, 3)
    levels = clips[:, 0, 0, 0, 0]
    light = levels >= 110
    assert light.sum() == 36 and all(quarter.sum() == 3 for quarter in light.reshape(-1, 4))
    for videos, count in ((levels[~light], 4), (levels[light], 3)):
        epochs = (videos // 10).reshape(
            -1, count
        )  # the level of a video, with the start of the clip in its ones
        assert all(len(set(epoch)) == count for epoch in epochs)
    held_out = [
        batch["video"][:, 0, 0, 0, 0] for batch in pipeline.validation_batches(opened, config, 4, 3)
    ]
    assert len(held_out) == 1 and sorted(held_out[0] // 100) == [
        0,
        1,
        1,
        1,
    ]  # one of one source, the other's video repeated


def test_every_layout_of_processes_sees_the_same_mixture_and_goes_on_with_it(mixture):
    config, workdir = mixture
    opened = sources.open_sources(config, workdir, images=True)

    def batches(shard):
        return take(pipeline.train_batches(opened, config, 6, shard), 9)

    whole = batches(pipeline.WHOLE)
    resumed = pipeline.train_batches(opened, config, 6)
    resumed.set_state({"next_clip": 24})
    rest = take(resumed, 5)
    for expected, batch in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(batch, expected)
    assert [video.shape[1] for video in whole].count(1) == 3  # two of six parts are images
    for video in whole:
        assert (video.shape[1:] == (1, 16, 16, 3) and video.min() >= 200) or (
            video.shape[1:] == (8, 16, 16, 3) and video.max() < 200
        )
    for hosts in (2, 3):
        shards = [batches(((host,), hosts)) for host in range(hosts)]
        for video, rows in zip(whole, zip(*shards, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(rows), video)


def test_images_are_held_out_too_and_the_transformer_gets_none(mixture):
    config, workdir = mixture
    opened = sources.open_sources(config, workdir, images=True)
    assert len(opened.images.train) == 6 and len(opened.images.validation) == 2
    *videos, images = (
        batch["video"] for batch in pipeline.validation_batches(opened, config, 2, 4)
    )
    assert [video.shape[1] for video in videos] == [8] and images[:, 0, 0, 0, 0].tolist() == [
        240,
        245,
    ]
    alone = sources.open_sources(config, workdir)
    assert {video.shape[1] for video in take(pipeline.train_batches(alone, config, 4), 6)} == {8}
    np.testing.assert_array_equal(
        take(pipeline.train_batches(dataclasses.replace(opened, images=None), config, 4), 3),
        take(pipeline.train_batches(alone, config, 4), 3),
    )


def test_the_clips_of_a_mixture_come_from_stored_tokens_too(mixture):
    config, workdir = mixture

    def encode(video):
        return video[:, :, ::8, ::8, 0].astype(np.int32)

    opened = sources.open_sources(config, workdir)
    stored = token_cache.prepare(config, workdir, opened, "a1", encode)
    ours, theirs = (pipeline.train_batches(source, config, 6) for source in (stored, opened))
    for _ in range(4):
        np.testing.assert_array_equal(next(ours)["tokens"], encode(next(theirs)["video"]))


def test_the_manifest_and_the_check_cover_every_source(mixture, capsys):
    config, workdir = mixture
    data_stage.run(config, workdir)
    parts = json.loads((workdir / "data" / "manifest.json").read_text())["mixture"]
    assert [
        (part["weight"], part["settings"]["source"], part["videos"]["train"]) for part in parts
    ] == [(1.0, "folder", 4), (3.0, "folder", 3), (2.0, "images", 6)]
    assert capsys.readouterr().err.count("none skipped") == 3
    assert sources.check(config, workdir).count("are as they were written") == 3
    file = next(
        sources.records_folder(sources.parts_of(config)[2], workdir).rglob("*train*array_record*")
    )
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is not what was written"):
        sources.check(config, workdir)


def test_what_a_mixture_cannot_be_is_one_sentence(make_config):
    from mebt_jax.config import default_config, from_config_dict

    def build(parts, **fields):
        config = default_config()
        config.data.update(
            dict(
                mixture=tuple(
                    {"source": "folder", "path": "a", "weight": 1.0} | part for part in parts
                )
            )
            | fields
        )
        return from_config_dict(config)

    for parts, fields, message in (
        ([{"weight": 0.0}], {}, r"mixture\[0\].weight is 0.0"),
        ([{}, {"source": "videos"}], {}, r"mixture\[1\].source is 'videos', but must be one of"),
        (
            [{"wieght": 1.0}],
            {},
            r"mixture\[0\].wieght; did you mean config.data.mixture\[0\].weight",
        ),
        (
            [{}, {"source": "images"}],
            {},
            "images, clips of one frame, which the tokenizer cannot take; set "
            "config.tokenizer.causal",
        ),
        (
            [],
            {"source": "folder", "source_dir": "a"},
            "config.data.source_dir is 'a', which the source 'folder' does not read; use "
            "config.data.path",
        ),
        (
            [{}],
            {"path": "a"},
            "config.data.path is 'a', which a mixture does not read; leave it empty",
        ),
        ([], {"source": "images"}, "images are clips of one frame; add a source of videos"),
    ):
        with pytest.raises(UserError, match=message):
            build(parts, **fields)


def test_measured_clips_are_of_the_videos_and_take_turns_by_the_weights(mixture):
    clips = measured_clips.open_clips(*mixture, "train")
    light = [clips[i]["video"].mean() > 100 for i in range(len(clips))]
    assert (
        len(light) == 7 and sum(light) == sum(light[:4]) == 3
    )  # three of the first four, then the rest of the others
    assert clips.text == "training, one clip per video at a random start"
    assert measured_clips.real_split(*mixture) == "validation"
