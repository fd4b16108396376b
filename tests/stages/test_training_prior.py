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

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.masking import draw_masking
from mebt_jax.methods.masked.shape_buckets import all_shapes
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import create_sharded, new_state
from mebt_jax.stages import data
from mebt_jax.stages import prior as stage

pytestmark = pytest.mark.usefixtures("quick_compiler")


@functools.cache
def train(steps, **overrides):
    """Losses and final state of `steps` steps on fixed codes."""
    config = from_config_dict(tiny_config(transformer__residual_dropout=0.0, **overrides))
    mesh = mesh_lib.make_mesh(config.mesh)
    graphdef, abstract_params = stage.abstract_transformer(config)
    optimizer = make_optimizer(config.transformer.training, abstract_params)
    codebook = jax.random.normal(jax.random.key(1), (16, 8))
    state, shardings = create_sharded(
        lambda: new_state(
            nnx.state(stage.new_transformer(config, jax.random.key(0), codebook), nnx.Param),
            optimizer,
            ema=True,
        ),
        mesh,
        config.runtime.fsdp_min_elements,
    )
    (shape,) = all_shapes(config.masking, config.grid)
    step = jax.jit(
        functools.partial(
            stage.train_step,
            graphdef=graphdef,
            optimizer=optimizer,
            config=config.transformer,
            shape=shape,
        ),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
        donate_argnums=0,
    )
    losses = []
    for i in range(steps):
        codes = np.random.default_rng(i).integers(0, 16, (8, *config.grid), dtype=np.int32)
        draw = draw_masking(config.masking, config.grid, 8, seed=0, step=i)
        state, metrics = step(
            state, *mesh_lib.put_rows(mesh, codes), *stage.place(draw, mesh), jax.random.key(2)
        )
        losses.append(float(metrics["loss"]))
    return losses, state


def test_a_new_modern_transformer_starts_at_its_neighbours():
    config = from_config_dict(tiny_config(transformer__flavour="modern"))
    codebook = jax.random.normal(jax.random.key(1), (16, 8))
    params = jax.jit(
        lambda: nnx.state(stage.new_transformer(config, jax.random.key(0), codebook), nnx.Param)
    )()
    block = params["stacks"][0]["blocks"][0]
    np.testing.assert_allclose(
        block["value"]["kernel"][...] @ block["output"]["kernel"][...], np.eye(16), atol=1e-5
    )


@pytest.mark.slow
def test_accumulation_weights_pieces_by_their_targets():
    # With a ratio per clip the pieces have different numbers of targets, and a mean of means would
    # be wrong.
    ratios = {"mesh__data": 1, "masking__ratio_per_sample": True}
    losses, _ = train(3, **ratios)
    accumulated, _ = train(3, **ratios, transformer__training__accumulation=4)
    np.testing.assert_allclose(accumulated, losses, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_like_one_that_was_not(
    tokenizer_run, compilation_cache, tmp_path
):
    overrides = {"tokenizer__checkpoint": str(tokenizer_run.workdir)} | LONG_TRANSFORMER
    whole, command = (
        Command(tmp_path / name, compilation_cache, "transformer", **overrides)
        for name in ("whole", "killed")
    )
    for one in (whole, command):
        workdir_lib.mark_done(one.config, one.workdir, "tokenizer")
    whole.run()
    command.stop(signal.SIGKILL, delay=random.uniform(0, 0.5))
    assert "going on from step" in command.run()
    assert command.record() == whole.record()

    # The same transformer with the codes of another tokenizer.
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
        match=r"^The transformer in [^\n]* was trained on the codes of tokenizer [^\n]*\.$",
    ):
        stage.run(other, whole.workdir)


@pytest.mark.slow
def test_every_program_is_among_those_announced(tokenizer_run, tmp_path):
    config = from_config_dict(
        tiny_config(
            tokenizer__checkpoint=str(tokenizer_run.workdir),
            masking__interval_schedule="uniform",
            masking__splits=2,
            mesh__data=1,
            transformer__training__steps=20,
        )
    )
    data.run(config, tmp_path)
    stage.run(config, tmp_path)
    done = workdir_lib.read_json(tmp_path / "transformer" / "done.json")
    assert 1 < done["compiled_steps"] <= len(all_shapes(config.masking, config.grid))


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
        lines = (workdir / "transformer" / "metrics.jsonl").read_text().splitlines()
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
