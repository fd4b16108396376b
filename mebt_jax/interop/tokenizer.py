"""Official VQGAN weights (mebt/vqgan.py, mebt/modules/codebook.py) into our tokenizer's parameters and codebook.

Works on a mapping from names to numpy arrays, however it was read from the checkpoint; nothing here needs PyTorch.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx, traverse_util

from mebt_jax.config import TokenizerConfig
from mebt_jax.errors import UserError
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.quantizers import Codebook

# Training-only parts of the official checkpoint that encoding and decoding do not use.
IGNORED_PREFIXES = ("image_discriminator.", "video_discriminator.", "perceptual_model.")

CODEBOOK_NAMES = {"embeddings": "codebook.embeddings", "counts": "codebook.N", "sums": "codebook.z_avg"}

# Our module names -> official ones, where they differ.
MODULE_NAMES = {
    "first": "conv_first.conv", "last": "conv_last.conv", "levels": "conv_blocks", "norm": "final_block.0",
    "down": "down.conv", "up": "up.convt", "conv1": "conv1.conv", "conv2": "conv2.conv",
    "refine": "res", "refine1": "res1", "refine2": "res2",
    "to_features": "pre_vq_conv.conv", "from_embeddings": "post_vq_conv.conv", "kernel": "weight", "scale": "weight",
}


def tokenizer_from_official(state_dict: Mapping[str, np.ndarray], config: TokenizerConfig) -> tuple[nnx.State, Codebook]:
    """Uses every official parameter exactly once.

    Args:
        state_dict: official names to arrays, the `state_dict` entry of an official checkpoint.
        config: must describe the same network: patch (1, 1, 1), and its compression, hidden, codes and code_width.

    Returns:
        The Param state of `Tokenizer(config)` and its codebook.

    Raises:
        UserError: the configuration folds patches, or parameters are missing, unknown or of another shape (all are listed).
    """
    if config.patch != (1, 1, 1):
        raise UserError(f"config.tokenizer.patch is {config.patch}, but official tokenizers fold no patches; "
                        "set it to (1, 1, 1).")
    _, params = nnx.split(nnx.eval_shape(lambda: Tokenizer(config, rngs=nnx.Rngs(0))), nnx.Param)
    expected = traverse_util.flatten_dict(nnx.to_pure_dict(params))
    width = (config.codes, config.code_width)
    codebook_shapes = {"embeddings": width, "counts": width[:1], "sums": width}

    shapes = {official_name(path): _official_shape(path, leaf.shape) for path, leaf in expected.items()}
    shapes |= {CODEBOOK_NAMES[field]: shape for field, shape in codebook_shapes.items()}
    _check(state_dict, shapes)

    leaves = {path: jnp.asarray(_from_torch(path, state_dict[official_name(path)]), jnp.float32) for path in expected}
    nnx.replace_by_pure_dict(params, traverse_util.unflatten_dict(leaves))
    codebook = Codebook(**{field: jnp.asarray(state_dict[name], jnp.float32) for field, name in CODEBOOK_NAMES.items()})
    return params, codebook


def official_name(path: tuple[str | int, ...]) -> str:
    """Official name of the parameter at a path of our tokenizer, e.g. ("encoder", "first", "kernel")."""
    return ".".join(MODULE_NAMES.get(part, str(part)) for part in path)


def _from_torch(path: tuple[str | int, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return np.asarray(value)
    if path[-2] == "up":  # transposed convolutions keep their inputs first
        return rearrange(np.asarray(value), "i o f h w -> f h w i o")
    return rearrange(np.asarray(value), "o i f h w -> f h w i o")


def _official_shape(path: tuple[str | int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    f, h, w, i, o = shape
    return (i, o, f, h, w) if path[-2] == "up" else (o, i, f, h, w)


def _check(state_dict: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    given = {name: value.shape for name, value in state_dict.items() if not name.startswith(IGNORED_PREFIXES)}
    problems = [f"{name} is missing" for name in shapes if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in shapes]
    problems += [f"{name} has shape {tuple(given[name])} instead of {shape}"
                 for name, shape in shapes.items() if name in given and tuple(given[name]) != shape]
    if problems:
        raise UserError("The official checkpoint does not fit config.tokenizer (check compression, hidden, codes and "
                        f"code_width): {'; '.join(sorted(problems))}.")
