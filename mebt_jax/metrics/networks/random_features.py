"""Features of clips from a fixed random 3D convolution network, for a distance that needs no
downloaded weights.

It compares runs on the same data with the same number of clips. It is not FVD, and is always
reported by the name "random-features Frechet distance".
"""

import jax
import jax.numpy as jnp
import numpy as np

from mebt_jax.metrics.networks.resize import check_bytes
from mebt_jax.nn.convolutions import convolve_by_taps

NAME = "random-features Frechet distance"
CHANNELS = (16, 32, 64)
SEED = 0


def random_features(video: jax.Array) -> jax.Array:
    """float32 [B, 2 * (16 + 32 + 64)] of uint8 clips [B, F, H, W, 3].

    Three layers of 3x3x3 convolution, stride 2 on every axis, and ReLU, with weights N(0, 2 /
    fan-in) of a fixed seed; from each layer the mean and the standard deviation of every channel
    over time and space. Highest matmul precision.
    """
    check_bytes(video)
    x = video.astype(jnp.float32) / 127.5 - 1.0
    draws = np.random.RandomState(SEED)  # NumPy promises never to change this stream
    pooled = []
    for channels in CHANNELS:
        fan_in = 27 * x.shape[-1]
        kernel = draws.standard_normal((3, 3, 3, x.shape[-1], channels)) * (2 / fan_in) ** 0.5
        with jax.default_matmul_precision("highest"):
            x = jax.nn.relu(_convolve(x, jnp.asarray(kernel, jnp.float32)))
        pooled += [x.mean(axis=(1, 2, 3)), x.std(axis=(1, 2, 3))]
    return jnp.concatenate(pooled, axis=-1)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3x3 convolution of [B, F, H, W, c], stride 2, zeros outside. Always by taps, so that the
    features do not depend on the platform.
    """
    padding = [
        (1, 1 + x.shape[1] % 2),  # one zero frame in front
        *jax.lax.padtype_to_pads(x.shape[2:4], (3, 3), (2, 2), "SAME"),
    ]
    return convolve_by_taps(jnp.pad(x, [(0, 0), *padding, (0, 0)]), kernel, (2, 2, 2))
