"""Official VQGAN weights (mebt/vqgan.py, mebt/modules/codebook.py) as our tokenizer and
discriminators, and back.

Works on mappings from names to numpy arrays, however they were read from the checkpoint; nothing
here needs PyTorch.
"""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from mebt_jax.errors import UserError
from mebt_jax.interop.feature_weights import shape_of
from mebt_jax.interop.names import (
    CONV2D,
    CONV3D,
    TRANSPOSED3D,
    Pair,
    Part,
    Path,
    filled,
    from_official,
    part_of,
    without_counters,
)
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig
from mebt_jax.tokenizer.training.discriminators import CLIPS, FRAMES, Discriminator

QUANTIZER_NAMES = {
    "codebook": "codebook.embeddings",
    "counts": "codebook.N",
    "sums": "codebook.z_avg",
}

# Our module names -> official ones, where they differ.
MODULE_NAMES = {
    "first": "conv_first.conv",
    "last": "conv_last.conv",
    "levels": "conv_blocks",
    "norm": "final_block.0",
    "down": "down.conv",
    "up": "up.convt",
    "conv1": "conv1.conv",
    "conv2": "conv2.conv",
    "refine": "res",
    "refine1": "res1",
    "refine2": "res2",
    "to_features": "pre_vq_conv.conv",
    "from_embeddings": "post_vq_conv.conv",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "variance": "running_var",
}
# Ours -> (official name, kernel size) of the networks that only training uses.
DISCRIMINATORS = {
    "frame_discriminator": ("image_discriminator", FRAMES),
    "clip_discriminator": ("video_discriminator", CLIPS),
}
PERCEPTUAL_PREFIX = "perceptual_model."
TRAINING_PREFIXES = (
    *(f"{official}." for official, _ in DISCRIMINATORS.values()),
    PERCEPTUAL_PREFIX,
)

FIX = (
    "give config.tokenizer the compression, hidden, codes, code_width and norm of that checkpoint."
)


def tokenizer_from_official(
    state_dict: Mapping[str, np.ndarray], config: TokenizerConfig
) -> nnx.State:
    """Uses every official parameter of the autoencoder exactly once; those of TRAINING_PREFIXES are
    not looked at.

    Args:
        state_dict: official names to arrays, the `state_dict` entry of an official checkpoint.
        config: must describe the same network: patch (1, 1, 1), and its compression, hidden, codes,
            code_width and norm.

    Returns:
        The variables of `Tokenizer(config)`, numpy arrays.

    Raises:
        UserError: the configuration has a patch, or parameters are missing, unknown or of another
            shape (all are listed).
    """
    arrays = {
        name: array
        for name, array in without_counters(state_dict).items()
        if not name.startswith(TRAINING_PREFIXES)
    }
    part = tokenizer_part(config)
    leaves = from_official(arrays, {"tokenizer": part}, fix=FIX)
    return filled(abstract_tokenizer(config), leaves["tokenizer"])


def tokenizer_part(config: TokenizerConfig) -> Part:
    """The variables of a tokenizer in the official VQGAN that computes the same.

    Raises:
        UserError: no official tokenizer computes what the config describes.
    """
    if config.patch != (1, 1, 1):
        raise UserError(
            f"config.tokenizer.patch is {config.patch}, but official tokenizers have no patches; "
            "set it to (1, 1, 1)."
        )
    if config.causal:
        raise UserError(
            "config.tokenizer.causal is True, but official tokenizers pad symmetrically; set it to "
            "False."
        )
    if config.quantizer != "ema":
        raise UserError(
            f"config.tokenizer.quantizer is {config.quantizer!r}, but official tokenizers have a "
            "codebook of running averages; set it to 'ema'."
        )
    return part_of(abstract_tokenizer(config), _tokenizer_pair)


def discriminator_from_official(
    state_dict: Mapping[str, np.ndarray], ours: str
) -> tuple[nnx.State, dict[str, int]] | None:
    """State and sizes ("channels", "layers") of one of DISCRIMINATORS from the state dict of a
    VQGAN, None if it has none.
    """
    prefix = f"{DISCRIMINATORS[ours][0]}."
    arrays = {
        name: array
        for name, array in without_counters(state_dict).items()
        if name.startswith(prefix)
    }
    if not arrays:
        return None
    layers = len({name.split(".")[1] for name in arrays}) - 2
    sizes = {"channels": shape_of(arrays, f"{prefix}model0.0.weight")[0], "layers": layers}
    state, part = discriminator_part(ours, **sizes)
    return filled(
        state, from_official(arrays, {ours: part}, fix="give a VQGAN of TATS.")[ours]
    ), sizes


def discriminator_part(ours: str, channels: int, layers: int) -> tuple[nnx.State, Part]:
    """Abstract state and leaves of one of DISCRIMINATORS."""
    official, kernel_size = DISCRIMINATORS[ours]
    state = nnx.state(
        nnx.eval_shape(lambda: Discriminator(kernel_size, channels, layers, rngs=nnx.Rngs(0)))
    )

    def pair(path: Path) -> Pair:
        _, index, *rest = path  # ("layers", 1, "norm", "scale") or ("layers", 1, "kernel")
        name = f"{official}.model{index}.{len(rest) - 1}.{MODULE_NAMES.get(rest[-1], rest[-1])}"
        if rest[-1] != "kernel":
            return Pair((name,))
        return Pair((name,), CONV3D if kernel_size == CLIPS else CONV2D.replace("-> ", "-> 1 "))

    return state, part_of(state, pair)


def abstract_tokenizer(config: TokenizerConfig) -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: Tokenizer(config, rngs=nnx.Rngs(0))))


def _tokenizer_pair(path: Path) -> Pair:
    """Such as ("encoder", "first", "kernel") or ("quantizer", "counts")."""
    if path[0] == "quantizer":
        return Pair((QUANTIZER_NAMES[path[1]],))
    name = ".".join(MODULE_NAMES.get(part, str(part)) for part in path)
    if path[-1] != "kernel":
        return Pair((name,))
    return Pair((name,), TRANSPOSED3D if path[-2] == "up" else CONV3D)
