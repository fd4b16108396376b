"""Features of clips from a fixed random 3D convolution network: a distance that needs no downloaded
weights.

Only for comparing runs on the same data with the same number of clips; it is not FVD and must
always be reported under the name "random-features Frechet distance".
"""

import jax
import jax.numpy as jnp
import numpy as np

from mebt_jax.metrics.networks.resize import check_bytes

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
    draws = np.random.RandomState(SEED)  # the one NumPy stream that is promised never to change
    pooled = []
    for channels in CHANNELS:
        fan_in = 27 * x.shape[-1]
        kernel = draws.standard_normal((3, 3, 3, x.shape[-1], channels)) * (2 / fan_in) ** 0.5
        x = jax.nn.relu(_strided_convolution(x, jnp.asarray(kernel, jnp.float32)))
        pooled += [x.mean(axis=(1, 2, 3)), x.std(axis=(1, 2, 3))]
    return jnp.concatenate(pooled, axis=-1)


def _strided_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3x3 convolution of [B, F, H, W, c], stride 2, zeros outside; as a sum over the temporal
    taps, faster on CPU.
    """
    frames = -(-x.shape[1] // 2)
    x = jnp.pad(x, ((0, 0), (1, 1 + x.shape[1] % 2), (0, 0), (0, 0), (0, 0)))
    total = 0.0
    for tap in range(3):
        rows = x[:, tap : tap + 2 * frames - 1 : 2]  # [B, frames, H, W, c]
        flat = rows.reshape(-1, *rows.shape[2:])
        y = jax.lax.conv_general_dilated(
            flat,
            kernel[tap],
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        total = total + y.reshape(rows.shape[:2] + y.shape[1:])
    return total
