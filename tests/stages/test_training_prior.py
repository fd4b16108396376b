import functools
import json
import random
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_config import tiny_config
from training_runs import LONG_TRANSFORMER, Command

from mebt_jax.backbones.mebt.mebt_config import FLAVOURS
from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.masked_method import MaskedMethod
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime import host_arrays
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import create_sharded, new_state
from mebt_jax.stages import data
from mebt_jax.stages import prior as stage

pytestmark = pytest.mark.usefixtures("quick_compiler")


@functools.cache
def train(steps, **overrides):
    """Losses and final state of `steps` steps on fixed tokens."""
    config = from_config_dict(tiny_config(backbone__residual_dropout=0.0, **overrides))
    mesh = mesh_lib.make_mesh(config.mesh)
    method = MaskedMethod.from_config(config)
    graphdef, abstract_params = abstract_prior(method)
    optimizer = make_optimizer(config.prior.training, abstract_params)
    codebook = jax.random.normal(jax.random.key(1), (16, 8))

    def create():
        params = nnx.state(method.create(jax.random.key(0), codebook), nnx.Param)
        return new_state(params, optimizer, ema=True)

    state, shardings = create_sharded(create, mesh, config.runtime.fsdp_min_elements)
    step_of = stage.step_programs(config, method, graphdef, optimizer, shardings, mesh)
    losses = []
    for i in range(steps):
        tokens = np.random.default_rng(i).integers(0, 16, (8, *config.grid), dtype=np.int32)
        (tokens,), draw = host_arrays.put_rows(mesh, tokens), method.draw(i)
        arrays = stage.put_draw(draw, mesh)
        state, metrics = step_of(draw.static)(state, tokens, None, arrays, jax.random.key(2))
        losses.append(float(metrics["loss"]))
    return losses, state


def test_a_new_modern_prior_starts_at_its_neighbours():
    config = tiny_config()
    config.backbone.update(FLAVOURS["modern"])
    method = MaskedMethod.from_config(from_config_dict(config))
    codebook = jax.random.normal(jax.random.key(1), (16, 8))
    create = jax.jit(lambda: nnx.state(method.create(jax.random.key(0), codebook), nnx.Param))
    attention = create()["stacks"][0]["blocks"][0]["attention"]
    np.testing.assert_allclose(
        attention["value"]["kernel"][...] @ attention["output"]["kernel"][...],
        np.eye(16),
        atol=1e-5,
    )


@pytest.mark.slow
def test_accumulation_weights_microbatches_by_their_targets():
    # With a ratio per clip the microbatches have different numbers of targets, and a mean of means
    # would be wrong.
    ratios = {"mesh__data": 1, "method__ratio_per_sample": True}
    losses, _ = train(3, **ratios)
    accumulated, _ = train(3, **ratios, prior__training__microbatches=4)
    np.testing.assert_allclose(accumulated, losses, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_like_one_that_was_not(
    tokenizer_run, compilation_cache, tmp_path
):
    overrides = {"tokenizer__checkpoint": str(tokenizer_run.workdir)} | LONG_TRANSFORMER
    whole, command = (
        Command(tmp_path / name, compilation_cache, "prior", **overrides)
        for name in ("whole", "killed")
    )
    for one in (whole, command):
        workdir_lib.mark_done(one.config, one.workdir, "tokenizer")
    whole.run()
    command.stop(signal.SIGKILL, delay=random.uniform(0, 0.5))
    assert "going on from step" in command.run()
    assert command.record() == whole.record()

    # The same prior with the tokens of another tokenizer.
    impostor = tmp_path / "impostor"
    shutil.copytree(tokenizer_run.workdir / "tokenizer" / "checkpoints", impostor)
    shutil.rmtree(
        max(
            (entry for entry in impostor.iterdir() if entry.name.isdigit()),
            key=lambda entry: int(entry.name),
        )
    )
    other = from_config_dict(tiny_config(**overrides | {"tokenizer__checkpoint": str(impostor)}))
    with pytest.raises(
        UserError,
        match=r"^The prior in [^\n]* was trained on the tokens of tokenizer [^\n]*\.$",
    ):
        stage.run(other, whole.workdir)


@pytest.mark.slow
def test_every_program_is_among_those_announced(tokenizer_run, tmp_path):
    config = from_config_dict(
        tiny_config(
            tokenizer__checkpoint=str(tokenizer_run.workdir),
            method__interval_schedule="uniform",
            method__bucket_steps=2,
            mesh__data=1,
            prior__training__steps=20,
        )
    )
    data.run(config, tmp_path)
    stage.run(config, tmp_path)
    done = workdir_lib.read_json(tmp_path / "prior" / "done.json")
    assert 1 < done["compiled_steps"] <= len(MaskedMethod.from_config(config).programs())


@pytest.mark.slow
def test_training_from_stored_tokens_gives_the_same_numbers(tokenizer_run, tmp_path):
    records = {}
    for tokens in (False, True):
        config = from_config_dict(
            tiny_config(tokenizer__checkpoint=str(tokenizer_run.workdir), data__tokens=tokens)
        )
        workdir = tmp_path / str(tokens)
        data.run(config, workdir)
        stage.run(config, workdir)
        lines = (workdir / "prior" / "metrics.jsonl").read_text().splitlines()
        records[tokens] = [
            {
                name: value
                for name, value in json.loads(line).items()
                if name.split("/")[-1] in ("step", "loss", "nll", "accuracy")
            }
            for line in lines
        ]
    assert len(list((tmp_path / "True" / "data").glob("tokens_*"))) == 1
    assert records[True] == records[False] and any(
        "validation/nll" in record for record in records[True]
    )
