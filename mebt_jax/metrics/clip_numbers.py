"""The plain numbers of clips. An entry of a table here is measured of all clips of its kind, and
its mean stands in the results of every evaluation that has such clips.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mebt_jax.metrics.distances import reconstruction
from mebt_jax.metrics.measures import Measure


def clip_number(name: str, function: Callable[[jax.Array], jax.Array], definition: str) -> Measure:
    """A Measure from a function of clips float32 [B, F, H, W, 3] in [0, 1] -> [B]."""
    return Measure(name, lambda _, video: function(_unit(video)), definition=definition)


def pair_number(
    name: str, function: Callable[[jax.Array, jax.Array], jax.Array], definition: str
) -> Measure:
    """A Measure from a function of real clips and their reconstructions, as in `clip_number`."""
    return Measure(
        name, lambda _, real, other: function(_unit(real), _unit(other)), definition=definition
    )


def _unit(video: jax.Array) -> jax.Array:
    return video.astype(jnp.float32) / 255


# Of one clip: of real, reconstructed and generated ones, with the real ones' beside the others'.
CLIP_NUMBERS: dict[str, Measure] = {}

# Of a real clip and its reconstruction.
PAIR_NUMBERS: dict[str, Measure] = {
    "psnr": pair_number(
        "PSNR",
        reconstruction.psnr,
        "dB, peak 1: mean over {clips} of the PSNR of each whole clip, uint8 against uint8",
    ),
    "ssim": pair_number(
        "SSIM",
        reconstruction.ssim,
        "mean over {clips}, their frames and channels; Gaussian window 11, sigma 1.5",
    ),
    "l1": pair_number(
        "L1",
        lambda real, other: jnp.abs(real - other).mean(axis=(1, 2, 3, 4)),
        "mean absolute difference of values in [0, 1] over {clips}",
    ),
}
