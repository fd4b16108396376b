import functools
import json
import random
import re
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny_config import tiny_config
from training_runs import ADVERSARIAL_TOKENIZER, LONG_TOKENIZER, Command

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.interop import weight_folders
from mebt_jax.runtime import checkpoints, host_arrays
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.train_state import create_sharded
from mebt_jax.stages import data
from mebt_jax.stages import tokenizer as stage
from mebt_jax.tokenizer.training import lpips

pytestmark = pytest.mark.usefixtures("quick_compiler")


@functools.cache
def train(steps, **overrides):
    """Losses and final state of `steps` steps on fixed clips."""
    config = from_config_dict(tiny_config(**overrides))
    mesh = mesh_lib.make_mesh(config.mesh)
    parts = stage.training_parts(config)
    state, shardings = create_sharded(
        functools.partial(stage.create_state, config, parts, jax.random.key(0), jax.random.key(1)),
        mesh,
        config.runtime.fsdp_min_elements,
    )
    step = jax.jit(
        functools.partial(
            stage.train_step,
            parts=parts,
            config=config.tokenizer,
            with_discriminators=config.tokenizer.adversarial.on,
        ),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
        donate_argnums=0,
    )
    losses = []
    for i in range(steps):
        video = np.random.default_rng(i).integers(0, 256, (8, 8, 16, 16, 3), dtype=np.uint8)
        state, metrics = step(
            state, host_arrays.put_batch(mesh, {"video": video})["video"], jax.random.key(2)
        )
        losses.append(float(metrics["loss"]))
    return losses, state


# From the first step on, so that a few steps show all of it.
ADVERSARIAL = {
    f"tokenizer__adversarial__{name}": value
    for name, value in {
        "frame_weight": 1.0,
        "video_weight": 1.0,
        "channels": 8,
        "layers": 1,
        "start": 0,
        "warmup": 0,
        "ramp": 2,
    }.items()
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [pytest.param({}, id="plain"), pytest.param(ADVERSARIAL, id="adversarial")]
)
def test_losses_do_not_depend_on_the_mesh_and_parameters_really_split(overrides):
    single, _ = train(3, mesh__data=1, **overrides)
    losses, state = train(3, mesh__data=2, mesh__fsdp=4, **overrides)
    np.testing.assert_allclose(losses, single, rtol=1e-5, atol=1e-5)
    arrays = jax.tree.leaves((state.params, state.ema, state.opt_state, state.disc_state))
    split = [leaf for leaf in arrays if leaf.size >= 512 and leaf.ndim > 1]
    assert split and all(leaf.addressable_shards[0].data.size * 4 == leaf.size for leaf in split)


@pytest.mark.slow
def test_accumulation_takes_the_same_step():
    # Restarted embeddings are drawn from the rows in the same order, so even those agree.
    losses, state = train(3, mesh__data=1)
    others, other = train(3, mesh__data=1, tokenizer__training__microbatches=4)
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    ours, theirs = (s.model_state["quantizer"] for s in (other, state))
    np.testing.assert_allclose(ours["counts"][...], theirs["counts"][...], atol=1e-4)
    np.testing.assert_allclose(ours["codebook"][...], theirs["codebook"][...], atol=1e-3)


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_ends_like_one_that_was_not(
    tokenizer_run, compilation_cache, tmp_path
):
    assert (
        stopped_and_killed(tmp_path, compilation_cache, LONG_TOKENIZER).record()
        == tokenizer_run.record()
    )


@pytest.mark.slow
def test_so_does_one_with_discriminators_and_the_checkpoint_before_them_is_kept(
    compilation_cache, tmp_path
):
    whole = Command(tmp_path / "whole", compilation_cache, "tokenizer", **ADVERSARIAL_TOKENIZER)
    whole.run()
    command = stopped_and_killed(tmp_path / "killed", compilation_cache, ADVERSARIAL_TOKENIZER)
    assert command.record() == whole.record()
    assert 7 in command.steps() & whole.steps()
    before = checkpoints.find_checkpoints(
        command.workdir / "tokenizer" / "checkpoints" / "7", "tokenizer"
    )
    assert checkpoints.read_meta(before)["step"] == 7
    lines = [line for line in command.record()[0] if "train/clip_logits/real" in line]
    first, last = lines[0], lines[-1]
    assert first["step"] == 6
    assert first["train/adversarial_scale"] == 0 < last["train/adversarial_scale"]


def stopped_and_killed(workdir, compilation_cache, overrides):
    """A run that got SIGTERM, then SIGKILL, then came to its end."""
    command = Command(workdir, compilation_cache, "tokenizer", **overrides)
    output = command.stop(signal.SIGTERM, delay=0.0)
    assert "told to stop, saved step" in output and "Traceback" not in output
    command.stop(signal.SIGKILL, delay=random.uniform(0, 0.5))
    assert "going on from step" in command.run()
    return command


@pytest.fixture(scope="module")
def exploded(tmp_path_factory):
    """A run whose second step is lost to its learning rate, and what it said."""
    workdir = tmp_path_factory.mktemp("exploded")
    config = from_config_dict(
        tiny_config(
            mesh__data=1,
            tokenizer__training__learning_rate=1e30,
            tokenizer__training__grad_clip_norm=0.0,
            tokenizer__training__checkpoint_every=1,
            tokenizer__training__log_every=1,
        )
    )
    data.run(config, workdir)
    with pytest.raises(UserError) as error:
        stage.run(config, workdir)
    return workdir, str(error.value)


def test_a_loss_that_explodes_stops_the_run_with_one_sentence(exploded):
    workdir, message = exploded
    assert re.search(
        r"^The [^\n]* step \d+ [^\n]*last good checkpoint is [^\n]*/1: [^\n]*\.$", message
    )
    assert not (workdir / "tokenizer" / "done.json").exists()


def test_training_starts_fitted_to_the_clips(exploded):
    lines = (exploded[0] / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["step"] == 1
    assert first["train/psnr"] > 18  # some 10 dB where it starts at noise


def test_a_tokenizer_of_other_sizes_is_refused(exploded, tmp_path):
    config = from_config_dict(
        tiny_config(tokenizer__checkpoint=str(exploded[0]), tokenizer__codebook_size=32)
    )
    with pytest.raises(
        UserError, match=r"has codebook_size 16, but config\.tokenizer\.codebook_size is 32"
    ):
        stage.run(config, tmp_path)


@pytest.mark.slow
def test_a_run_with_lpips_reads_its_weights_and_pays_for_the_distance(tmp_path, monkeypatch):
    monkeypatch.setattr(lpips, "WIDTHS", (4,) * 5)
    weight_folders.save_network(
        tmp_path / "weights", "lpips", nnx.state(lpips.LPIPS(rngs=nnx.Rngs(0))), {}
    )
    overrides = {"mesh__data": 1, "tokenizer__perceptual_weight": 4.0}
    config = from_config_dict(tiny_config(**overrides, tokenizer__lpips=str(tmp_path / "weights")))
    data.run(config, tmp_path / "run")
    with pytest.raises(
        UserError,
        match=r"weights of LPIPS are not here: fetch .* pass --config\.tokenizer\.lpips=DIR",
    ):
        stage.run(from_config_dict(tiny_config(**overrides)), tmp_path / "run")
    stage.run(config, tmp_path / "run")
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    ]
    for line in (line for line in lines if "train/loss" in line):
        terms = {"l1": 4.0, "commitment": 0.25, "perceptual": 4.0}
        assert line["train/perceptual"] > 0
        assert line["train/loss"] == pytest.approx(
            sum(weight * line[f"train/{name}"] for name, weight in terms.items()), rel=1e-4
        )
    assert any(line.get("validation/perceptual", 0.0) > 0 for line in lines)


@pytest.mark.slow
def test_images_and_videos_train_one_tokenizer(tmp_path):
    for i in range(24):
        path = tmp_path / "images" / ("train" if i < 16 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), 10 * i, np.uint8)).save(path)
    config = from_config_dict(
        tiny_config(
            mesh__data=1,
            data__frames=9,
            tokenizer__causal=True,
            tokenizer__norm="layer",
            tokenizer__training__validate_every=2,
            data__mixture=(
                {"source": "moving_shapes", "path": "", "weight": 1.0},
                {"source": "images", "path": str(tmp_path / "images"), "weight": 1.0},
            ),
        )
    )
    data.run(config, tmp_path / "run")
    stage.run(config, tmp_path / "run")
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6]
    assert all(np.isfinite(line["validation/loss"]) for line in lines if "validation/loss" in line)
    assert (tmp_path / "run" / "tokenizer" / "done.json").exists()
