"""A trained prior: its method and its weights, read from a work directory or a checkpoint."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.config_fields import misfits
from mebt_jax.errors import UserError
from mebt_jax.methods import METHODS, earlier_priors
from mebt_jax.methods.interface import Method
from mebt_jax.runtime import checkpoints, telemetry
from mebt_jax.runtime.hashing import hash_arrays
from mebt_jax.runtime.sharding import with_sharding
from mebt_jax.runtime.train_state import TrainState

STAGE = "prior"
AVERAGED, PLAIN = "averaged", "plain"


@dataclasses.dataclass(frozen=True)
class TrainedPrior:
    """A frozen backbone, the method that trained it, and the step of its checkpoint."""

    method: Method
    graphdef: nnx.GraphDef
    params: nnx.State
    step: int
    weights: str = AVERAGED  # or PLAIN, where training has no averages


def abstract_prior(method: Method) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameter shapes, without making any array."""
    return nnx.split(nnx.eval_shape(lambda: method.create(jax.random.key(0))), nnx.Param)


def prior_hash(params: nnx.State) -> str:
    """Names weights by content, whatever folder they came from.

    It takes the names of layout 1, so that weights saved by an earlier version keep their name.
    """
    arrays = nnx.to_flat_state(params)
    renamed = [(earlier_priors.earlier_path(path), array) for path, array in arrays]
    return hash_arrays(nnx.from_flat_state(renamed))


def load_prior(config: Config, workdir: Path, mesh: Mesh, tokenizer_hash: str) -> TrainedPrior:
    """The prior of the workdir, or of `config.prior.checkpoint` where it is used as it is.

    Args:
        workdir: a workdir, its prior folder, or a folder of checkpoints.
        tokenizer_hash: `LatentSpace.content_hash` of the tokenizer to decode with.

    Returns:
        Averaged weights where there are any.

    Raises:
        UserError: there is none, it is another backbone, or it was trained with another tokenizer.
    """
    as_it_is = config.prior.training.steps == 0
    folder = checkpoints.find_checkpoints(
        Path(config.prior.checkpoint) if as_it_is else workdir, STAGE
    )
    refuse_other_tokenizer(folder, tokenizer_hash)
    meta = checkpoints.read_meta(folder)
    theirs = config_lib.from_saved(meta["config"], folder)
    # Heads and kinds of layers do not show in the shapes of parameters.
    for name, there, here in misfits(theirs.backbone, config.backbone):
        raise UserError(
            f"The prior in {folder} has {name} {there}, but config.backbone.{name} is {here}; set "
            f"it to {there} or use another prior."
        )
    method = METHODS[config.method.kind].from_config(config)
    graphdef, params = abstract_prior(method)
    averaged = theirs.prior.training.ema_decay > 0
    name = "ema" if averaged else "params"
    target = with_sharding({name: params}, mesh, config.runtime.fsdp_min_elements)
    arrays = checkpoints.read_arrays(folder, target, earlier_priors.path_in(meta))
    return TrainedPrior(
        method,
        graphdef,
        arrays[name],
        step=meta["step"],
        weights=AVERAGED if averaged else PLAIN,
    )


def refuse_other_tokenizer(folder: Path, tokenizer_hash: str) -> None:
    """Raises UserError if the latest checkpoint in `folder`, if any, was trained on the latents of
    another tokenizer.
    """
    if not checkpoints.has_checkpoint(folder):
        return
    trained_on = checkpoints.read_meta(folder)["tokenizer"]
    if trained_on is None:  # converted without its tokenizer
        telemetry.say(
            f"{STAGE}: {folder} does not name its tokenizer, so whether it is {tokenizer_hash} "
            "cannot be checked"
        )
    elif trained_on != tokenizer_hash:
        raise UserError(
            f"The prior in {folder} was trained on the tokens of tokenizer {trained_on}, but the "
            f"tokenizer here is {tokenizer_hash}, whose tokens mean other things; use that "
            f"tokenizer, or remove {folder.parent} to train a prior for this one."
        )


def start_weights(config: Config, state: TrainState, mesh: Mesh, tokenizer_hash: str) -> TrainState:
    """`state` with the weights of `config.prior.checkpoint`, if it is set, for random ones."""
    if not config.prior.checkpoint:
        return state
    trained = load_prior(config, Path(config.prior.checkpoint), mesh, tokenizer_hash)
    telemetry.say(
        f"{STAGE}: starting from the weights of step {trained.step} in {config.prior.checkpoint}"
    )
    ema = None if state.ema is None else jax.tree.map(jnp.copy, trained.params)
    return state.replace(params=trained.params, ema=ema)
