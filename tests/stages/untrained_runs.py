"""Work directories whose checkpoints hold random weights, for tests of what follows training."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.config import Config, to_dict
from mebt_jax.runtime import checkpoints, telemetry
from mebt_jax.runtime.train_state import TrainState
from mebt_jax.stages.tokenizer import tokenizer_hash
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.earlier_tokenizers import LAYOUT


def write_tokenizer(config: Config, workdir: Path) -> nnx.State:
    """The state of a tokenizer of random weights, with a checkpoint of it in `workdir`."""
    tokenizer = jax.jit(lambda: nnx.state(Tokenizer(config.tokenizer, rngs=nnx.Rngs(0))))()
    write_checkpoint(config, workdir, "tokenizer", *nnx.split_state(tokenizer, nnx.Param, ...))
    return tokenizer


def write_prior(config: Config, workdir: Path, params: nnx.State, tokenizer: nnx.State) -> None:
    """A checkpoint of a prior that was trained on tokens of `tokenizer`."""
    write_checkpoint(config, workdir, "prior", params, tokenizer=tokenizer_hash(tokenizer))


def write_checkpoint(
    config: Config,
    workdir: Path,
    stage: str,
    params: nnx.State,
    model_state: nnx.State | None = None,
    **meta: str,
) -> None:
    # A stage that takes the weights that are not averaged has other results at once.
    plain = jax.tree.map(jnp.zeros_like, params)
    state = TrainState(
        step=jnp.int32(3), params=plain, ema=params, opt_state=(), model_state=model_state
    )
    meta |= {"config": to_dict(config), "layout": LAYOUT}
    folder = workdir / stage / "checkpoints"
    with checkpoints.Checkpointer(folder, meta, keep_every=1) as checkpointer:
        checkpointer.save(3, state, {}, metric=None)
    with telemetry.MetricsLog(workdir / stage, step=3) as log:
        for step in range(3):
            log.write(step, {"train/loss": 1.0 - 0.1 * step})
