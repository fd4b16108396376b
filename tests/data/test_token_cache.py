"""Clips of stored tokens against the tokens of the same clips."""

import dataclasses

import numpy as np
import pytest

from mebt_jax.data import pipeline, record_folders, sources, token_cache
from mebt_jax.errors import UserError
from mebt_jax.stages import data as data_stage


def pointwise(video):
    """A tokenizer of compression (4, 8, 8) in which a code depends on its own patch alone."""
    first = video.astype(np.int32)[:, ::4, ::8, ::8, 0]
    return first + video[:, 3::4, ::8, ::8, 0]


def wide(video):
    """A tokenizer in which every code depends on the whole clip."""
    return pointwise(video) + video.astype(np.int32).sum((1, 2, 3, 4))[:, None, None, None] % 1000


@pytest.mark.parametrize(
    "windows, latent_frames, period",
    [(1, 2, 4), (3, 2, 4), (17, 2, 4), (40, 5, 4), (50, 4, 16), (9, 1, 1)],
)
def test_the_windows_fill_each_row_once_and_from_the_right_frames(windows, latent_frames, period):
    rows = []  # frame at which the latent frame of each row begins
    for window in token_cache.windows_of(windows, latent_frames, period):
        assert (
            window.row == len(rows)
            and 0 <= window.start < windows
            and 0 <= window.first < window.end <= latent_frames
        )
        rows += [window.start + period * i for i in range(window.first, window.end)]
    record = {
        "codes": np.array(rows),
        "windows": windows,
        "latent_frames": latent_frames,
        "period": period,
    }
    for start in range(windows):
        np.testing.assert_array_equal(
            token_cache.cut_tokens(record, start), start + period * np.arange(latent_frames)
        )


@pytest.fixture
def videos(tmp_path, write_video, make_config):
    """(config, opened): videos of 20 to 50 frames of noise, every second frame used; records of at
    most 31 frames.
    """
    rng = np.random.default_rng(0)
    for i in range(5):
        coarse = rng.integers(0, 255, (20 + 7 * i, 4, 4, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / f"{i}.mkv", coarse.repeat(8, 1).repeat(8, 2))
    config = make_config(
        source="folder", path=str(tmp_path / "videos"), frame_stride=2, resolution=32
    )
    config = dataclasses.replace(
        config,
        prior=dataclasses.replace(
            config.prior,
            training=dataclasses.replace(config.prior.training, batch_size=3),
        ),
    )
    sources.prepare(config, tmp_path / "run")
    return config, sources.open_sources(config, tmp_path / "run")


def batches(opened, config, count=6):
    train = pipeline.train_batches(opened, config, 4)
    return [next(train) for _ in range(count)] + list(
        pipeline.validation_batches(opened, config, 2, 3)
    )


def test_the_same_clips_come_with_the_cache_and_without(videos, tmp_path):
    config, opened = videos
    stored = token_cache.prepare(config, tmp_path / "run", opened, "a1", pointwise)
    for clip, tokens in zip(batches(opened, config), batches(stored, config), strict=True):
        assert tokens["tokens"].dtype == np.int32
        np.testing.assert_array_equal(tokens["tokens"], pointwise(clip["video"]))

    def fail(_):
        raise AssertionError("encoded again")

    again = token_cache.prepare(config, tmp_path / "run", opened, "a1", fail)
    assert again.content_hash == stored.content_hash


def test_records_of_one_clip_agree_for_any_tokenizer(make_config, tmp_path):
    config = make_config(train_clips=10, validation_clips=4)
    opened = sources.open_sources(config, tmp_path)
    stored = token_cache.prepare(config, tmp_path, opened, "a1", wide)
    for clip, tokens in zip(batches(opened, config), batches(stored, config), strict=True):
        np.testing.assert_array_equal(tokens["tokens"], wide(clip["video"]))


def test_an_interrupted_encoding_goes_on(videos, tmp_path):
    config, opened = videos
    calls = []

    def interrupted(video):
        calls.append(len(video))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return pointwise(video)

    with pytest.raises(KeyboardInterrupt):
        token_cache.prepare(config, tmp_path / "run", opened, "a1", interrupted)
    before = len(calls)
    token_cache.prepare(config, tmp_path / "run", opened, "a1", interrupted)
    after = len(calls) - before
    calls.clear()
    whole = token_cache.prepare(
        config,
        tmp_path / "whole",
        opened,
        "a1",
        lambda video: (calls.append(0), pointwise(video))[1],
    )
    assert after < len(calls) < before + after
    parts = token_cache.open_tokens(*_folder_and_key(tmp_path / "run"))
    for i in range(len(whole.train)):
        np.testing.assert_array_equal(parts.train[i]["codes"], whole.train[i]["codes"])


def test_tokens_of_another_tokenizer_or_of_other_data_are_refused(videos, tmp_path):
    config, opened = videos
    token_cache.prepare(config, tmp_path / "run", opened, "a1", pointwise)
    folder, key = _folder_and_key(tmp_path / "run")
    token_cache.prepare(
        config, tmp_path / "run", opened, "b2", pointwise
    )  # has a folder of its own
    assert len(list(folder.parent.glob("tokens_*"))) == 2
    for name, here in (
        ("tokenizer", "by tokenizer a1, but this run has b2"),
        ("data", "but this run has b2"),
    ):
        with pytest.raises(UserError, match=here):
            token_cache.open_tokens(folder, key | {name: "b2"})


def test_the_check_reads_the_tokens_again(videos, tmp_path, capsys):
    config, opened = videos
    for tokenizer in ("a1", "b2"):
        token_cache.prepare(config, tmp_path / "run", opened, tokenizer, pointwise)
    data_stage.check(config, tmp_path / "run")
    printed = capsys.readouterr().err
    assert (
        all(f"tokens by tokenizer {name}: " in printed for name in ("a1", "b2"))
        and printed.count("are as they were written") == 3
    )
    file = next((tmp_path / "run" / "data").glob("tokens_*/*/*/*train*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name} is not what was written"):
        data_stage.check(config, tmp_path / "run")


def _folder_and_key(workdir):
    (folder,) = (workdir / "data").glob("tokens_*")
    return folder, record_folders.read_manifest(folder)
