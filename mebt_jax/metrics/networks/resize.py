"""Bilinear resizing of frames under the three rules that feature networks were published with.

They differ in where the centre of an output pixel lies in the input, which changes FVD and the
Inception Score; none of them antialiases.
"""

import jax
import jax.numpy as jnp
import numpy as np

RULES = ("half_pixel", "corner", "aligned")


def resize(frames: jax.Array, size: tuple[int, int], rule: str) -> jax.Array:
    """float32 [..., *size, C] of frames [..., H, W, C], stretched to `size` whatever their aspect
    ratio.

    Args:
        frames: any number type; the range of the values stays.
        size: (height, width) in pixels.
        rule: "half_pixel" is torch's interpolate with align_corners=False; "corner" is TensorFlow
            1's resize_bilinear, which puts the centres of pixels at their corners; "aligned" is
            align_corners=True, which is Chainer's resize_images.
    """
    rows, columns = (_weights(n, m, rule) for n, m in zip(frames.shape[-3:-1], size))
    return jnp.einsum(
        "yh,...hwc,xw->...yxc", rows, frames.astype(jnp.float32), columns, precision="highest"
    )


def _weights(inputs: int, outputs: int, rule: str) -> np.ndarray:
    """float32 [outputs, inputs] with the two weights of every output pixel; rows sum to 1."""
    if rule not in RULES:
        raise ValueError(f"unknown resize rule {rule!r}; the rules are {', '.join(RULES)}")
    at = np.arange(outputs)
    if rule == "half_pixel":
        at = (at + 0.5) * (inputs / outputs) - 0.5
    elif rule == "corner":
        at = at * (inputs / outputs)
    else:
        at = at * ((inputs - 1) / max(outputs - 1, 1))
    at = np.clip(at, 0, inputs - 1)
    below = np.floor(at).astype(int)
    share = at - below
    weights = np.zeros((outputs, inputs), np.float32)
    np.add.at(weights, (np.arange(outputs), below), 1 - share)
    np.add.at(weights, (np.arange(outputs), np.minimum(below + 1, inputs - 1)), share)
    return weights


def check_bytes(video: jax.Array) -> None:
    """Raises ValueError unless clips are uint8 [B, F, H, W, 3]: floats in [0, 1] or in [-1, 1]
    would give wrong features without an error.
    """
    if video.dtype != jnp.uint8 or video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(
            f"features are of uint8 clips [B, F, H, W, 3], not of {video.dtype} {video.shape}"
        )
