"""Reads a trained tokenizer from a work directory or a checkpoint."""

from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.config_fields import misfits
from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints
from mebt_jax.runtime.sharding import with_sharding
from mebt_jax.tokenizer import earlier_tokenizers
from mebt_jax.tokenizer.autoencoder import Tokenizer, tokenizer_hash
from mebt_jax.tokenizer.latent_space import TokenSpace

STAGE = "tokenizer"


def abstract_tokenizer(config: Config) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Structure, and shapes of parameters and of the other variables, without making any array."""
    return nnx.split(
        nnx.eval_shape(lambda: Tokenizer(config.tokenizer, rngs=nnx.Rngs(0))), nnx.Param, ...
    )


def load_tokenizer(config: Config, workdir: Path, mesh: Mesh) -> TokenSpace:
    """The tokenizer of `config.tokenizer.checkpoint`, or else of the workdir: averaged weights
    where there are any.

    Raises:
        UserError: there is none, or it was trained with other sizes.
    """
    folder = checkpoints.find_checkpoints(Path(config.tokenizer.checkpoint or workdir), STAGE)
    meta = checkpoints.read_meta(folder)
    theirs = config_lib.from_saved(meta["config"], folder)
    for name, there, here in misfits(theirs.tokenizer, config.tokenizer):
        raise UserError(
            f"The tokenizer in {folder} has {name} {there}, but config.tokenizer.{name} is {here}; "
            f"set it to {there} or use another tokenizer."
        )
    graphdef, params, model_state = abstract_tokenizer(config)
    weights = "ema" if theirs.tokenizer.training.ema_decay > 0 else "params"
    parts = with_sharding(
        {weights: params, "model_state": model_state}, mesh, config.runtime.fsdp_min_elements
    )
    arrays = checkpoints.read_arrays(folder, parts, earlier_tokenizers.path_in(meta))
    variables = nnx.merge_state(arrays[weights], arrays["model_state"])
    return TokenSpace(graphdef, variables, tokenizer_hash(variables), mesh)
