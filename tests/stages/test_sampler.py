"""Every task end to end with tiny random models: from Python, as the sample stage, to disk, and
again after an interruption.
"""

import dataclasses
import json
import os

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mebt_jax.config import from_config_dict, to_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.masked_method import MaskedMethod
from mebt_jax.methods.masked.plan import REVISE
from mebt_jax.methods.sampling_keys import window_keys
from mebt_jax.methods.trained_prior import TrainedPrior
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import pictures
from mebt_jax.sampler import Sampler
from mebt_jax.stages import sample
from mebt_jax.tasks import masks
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.latent_space import TokenSpace
from tests.tiny_config import tiny_config

# 16 frames of 16x16 are 4x4x4 tokens; every task here is given half of them, so that all share
# their programs.
CONFIG = from_config_dict(
    tiny_config(
        data__frames=16,
        sample__clips=3,
        sample__batch_size=2,
        decoding__draft_steps=1,
        sample__formats=("npz",),
        mesh__data=2,
    )
)
VIDEOS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 16, 3), np.uint8)
MASK = np.zeros((16, 16, 16), bool)
MASK[:, :8] = True


@pytest.fixture(scope="module")
def models():
    """A tokenizer whose tokens follow the picture, and a prior, both with random weights."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update(
        "jax_disable_most_optimizations", True
    )  # the time of this test is compilation
    tokenizer = nnx.split(Tokenizer(CONFIG.tokenizer, rngs=nnx.Rngs(0)))
    space = TokenSpace(*tokenizer, "0", mesh_lib.make_mesh(CONFIG.mesh))
    method = MaskedMethod.from_config(CONFIG)
    graphdef, params = nnx.split(method.create(jax.random.key(1), space.codebook), nnx.Param)
    noisy = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(2), x.shape) / 4, params)
    yield space, TrainedPrior(method, graphdef, noisy, step=3)
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def sampler(models):
    return Sampler(CONFIG, *models)


CALLS = {
    "predict": lambda sampler, **which: sampler.predict(VIDEOS, 8, **which),
    "interpolate": lambda sampler, **which: sampler.interpolate(list(VIDEOS), 4, 4, **which),
    "fill": lambda sampler, **which: sampler.fill(VIDEOS, MASK, **which),
    "edit": lambda sampler, **which: sampler.edit(VIDEOS, (0, 16, 8, 16, 0, 16), **which),
}
TASKS = {
    "predict": masks.predict(CONFIG, 8),
    "interpolate": masks.interpolate(CONFIG, 4, 4),
    "fill": masks.fill(CONFIG, MASK),
    "edit": masks.edit(CONFIG, (0, 16, 8, 16, 0, 16)),
}


@pytest.mark.parametrize("name", CALLS)
def test_given_tokens_never_change(sampler, name):
    given = np.concatenate([sampler.encode(TASKS[name], VIDEOS[[i, i]])[:1] for i in range(3)])
    known = TASKS[name].known
    assert known.sum() == 32
    drawn = {}
    for seed in range(3):
        drawn[seed] = CALLS[name](sampler, seed=seed)
        assert drawn[seed].video.shape == VIDEOS.shape and drawn[seed].video.dtype == np.uint8
        np.testing.assert_array_equal(drawn[seed].latents[:, known], given[:, known])
        np.testing.assert_array_equal(
            drawn[seed].committed_at < 0, np.broadcast_to(known, drawn[seed].latents.shape)
        )
    assert (drawn[0].latents != drawn[1].latents)[:, ~known].mean() > 0.05
    again = CALLS[name](sampler, seed=1)
    np.testing.assert_array_equal(again.video, drawn[1].video)


def test_extend_goes_on_from_what_it_has_and_costs_no_memory(sampler):
    pieces = list(sampler.extend(40, videos=VIDEOS[:2], given=8, seed=4))
    assert [piece.shape for piece in pieces] == [(2, 16, 16, 16, 3), *[(2, 8, 16, 16, 3)] * 3]
    np.testing.assert_array_equal(pieces[0], sampler.predict(VIDEOS[:2], 8, seed=4).video)
    first, *others = sampler.windows(TASKS["predict"], [0, 1], VIDEOS[:2], 40, seed=4)
    codes = np.concatenate([first[0], *(codes for codes, _ in others)], axis=1)
    assert codes.shape == (2, 10, 4, 4)
    later = masks.continuation(CONFIG, 8)
    window = sampler.on_host(
        sampler._sample(
            later,
            window_keys(sampler._keys(4, [0, 1]), 1),
            jnp.pad(codes[:, 2:4], ((0, 0), (0, 2), (0, 0), (0, 0))),
            None,
            None,
        ).latents
    )
    np.testing.assert_array_equal(window[:, :2], codes[:, 2:4])  # given tokens never change
    np.testing.assert_array_equal(window[:, 2:], codes[:, 4:6])
    known = TASKS["predict"].known
    for seed in range(3):
        codes, _ = next(sampler.windows(TASKS["predict"], [0, 1], VIDEOS[:2], 40, seed=seed))
        np.testing.assert_array_equal(
            codes[:, known], sampler.encode(TASKS["predict"], VIDEOS[:2])[:, known]
        )
    whole = next(iter(sampler.extend(16, videos=VIDEOS[:2], given=16)))
    np.testing.assert_array_equal(
        whole,
        sampler.video_of(
            np.asarray(sampler.encode(masks.edit(CONFIG, (0, 4, 0, 4, 0, 4)), VIDEOS[:2]))
        ),
    )


def with_sample(**settings):
    return dataclasses.replace(CONFIG, sample=dataclasses.replace(CONFIG.sample, **settings))


@pytest.fixture
def program(monkeypatch, models, tmp_path):
    """Runs the sample stage with these models in one workdir; returns the folder of the task."""
    monkeypatch.setattr(
        Sampler,
        "from_workdir",
        classmethod(lambda cls, config, workdir: cls(config, *models)),
    )
    for i, video in enumerate(VIDEOS[:2]):
        pictures.write_mp4(tmp_path / "videos" / f"{i}.mp4", video, 10.0)
    np.save(tmp_path / "mask.npy", MASK)

    def run(**settings):
        files = {"input": str(tmp_path / "videos"), "mask": str(tmp_path / "mask.npy")}
        config = with_sample(**files | settings)
        sample.run(config, tmp_path)
        return (
            tmp_path / "sample" / ("" if config.sample.task == "generate" else config.sample.task)
        )

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "predict", "given_frames": 8},
        {"task": "interpolate", "given_frames": 4, "given_last_frames": 4},
        {"task": "fill"},
        {"task": "edit", "region": (0, 16, 8, 16, 0, 16)},
    ],
    ids=lambda x: x["task"],
)
def test_every_task_runs_as_a_stage_and_any_clip_can_be_made_again_alone(program, settings, capsys):
    folder = program(**settings)
    assert (
        f"{settings['task']}, 3 of 3 clips to draw, 2 at a time; 3 passes each"
        in capsys.readouterr().err
    )
    codes = np.load(folder / "tokens.npz")["codes"]
    assert codes.shape == (3, 4, 4, 4)
    known = TASKS[settings["task"]].known
    np.testing.assert_array_equal(codes[0][known], codes[2][known])  # two videos for three clips
    assert (codes[0] != codes[2]).any()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [record["input"][-5:] for record in manifest["made"]] == ["0.mp4", "1.mp4", "0.mp4"]
    assert Image.open(folder / "contact_sheet.png").height > 3 * 64
    (folder / "tokens" / "clip_0002.npy").unlink()
    program(**settings, first_clip=2, clips=1)
    np.testing.assert_array_equal(np.load(folder / "tokens.npz")["codes"], codes[2:])


def test_extend_streams_to_disk(program):
    folder = program(task="extend", given_frames=8, frames=30, formats=("mp4", "frames"))
    for number in range(3):
        with av.open(str(folder / "clips" / f"clip_{number:04d}.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 30
        assert len(list((folder / "clips" / f"clip_{number:04d}").iterdir())) == 30
        assert np.load(folder / "tokens" / f"clip_{number:04d}.npy").shape == (8, 4, 4)
    assert (
        sorted(path.name for path in (folder / "clips").iterdir() if path.name.startswith("."))
        == []
    )


def test_an_interrupted_run_goes_on_where_it_stopped(program, monkeypatch):
    settings = {"task": "predict", "given_frames": 8, "formats": ("mp4", "gif", "npz", "frames")}
    drawn = []
    whole = Sampler.draw_batch

    def count(self, task, numbers, *rest, **more):
        drawn.append(numbers)
        return whole(self, task, numbers, *rest, **more)

    monkeypatch.setattr(Sampler, "draw_batch", count)
    folder = program(**settings)
    assert drawn == [[0, 1], [2, 2]]
    codes = np.load(folder / "tokens.npz")["codes"]
    names = {path.name for path in (folder / "clips").iterdir()}
    assert names == {f"clip_{i:04d}{end}" for i in range(3) for end in ("", ".mp4", ".gif", ".npz")}
    assert np.load(folder / "clips" / "clip_0001.npz")["video"].shape == (16, 16, 16, 3)

    (folder / "tokens" / "clip_0001.npy").unlink()  # as if killed before its end
    (folder / "clips" / "clip_0002.gif").unlink()  # as if made without GIF
    program(**settings)
    assert drawn[2:] == [[1, 1]] and (folder / "clips" / "clip_0002.gif").exists()
    np.testing.assert_array_equal(np.load(folder / "tokens.npz")["codes"], codes)


def test_other_settings_and_inputs_leave_the_clips_that_are_there(program, capsys):
    settings = {"task": "predict", "given_frames": 8, "formats": ("mp4",)}
    folder = program(**settings)
    before = contents(folder)
    for others in ({"input": "nowhere"}, {"batch_size": 3}):
        with pytest.raises(UserError):
            program(**settings | others)
    assert contents(folder) == before

    program(**settings, seed=7, clips=2)
    (other,) = folder.glob("seed=7-*")
    assert f"in {other}" in capsys.readouterr().err
    assert len(list((other / "tokens").iterdir())) == len(list((other / "clips").iterdir())) == 2
    codes = np.load(other / "tokens.npz")["codes"]
    assert (np.load(folder / "tokens.npz")["codes"][:2] != codes).any()
    os.utime(folder.parents[1] / "videos" / "0.mp4", (0, 0))  # another file of this name
    program(**settings)
    (third,) = folder.glob("other_inputs-*")
    assert third.is_dir()
    program(**settings)
    assert "0 of 3 clips to draw" in capsys.readouterr().err
    assert {path: (folder / path).read_bytes() for path in before} == before


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_settings_are_taken_from_presets_and_checked_by_name(models, tmp_path):
    sampler = Sampler(CONFIG, *models)
    preset = sampler.changed(preset="sky16")
    assert preset.prior.method.decoding.draft_steps == 32
    assert preset.prior.method.plan().count(REVISE) == 4
    # A field that is changed after the preset counts.
    assert preset.changed(draft_steps=5).prior.method.decoding.draft_steps == 5
    assert preset.changed(draft_steps=5).prior.method.decoding.revise_rounds == 2
    with pytest.raises(UserError, match="sky17.*sky16, taichi16"):
        sampler.changed(preset="sky17")
    with pytest.raises(UserError, match="no work directory"):
        Sampler.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(CONFIG)))
    for name, field in (("batchsize", "sample.batch_size"), ("topk", "decoding.top_k")):
        with pytest.raises(UserError, match=f"did you mean config.{field}"):
            Sampler.load(tmp_path, **{name: 3})
    with pytest.raises(UserError, match="3 videos are to be extended at once"):
        next(Sampler(CONFIG, *models).extend(20, clips=3))
