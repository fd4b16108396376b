"""How close reconstructed clips are to the real ones: PSNR and SSIM, in float32 on values in [0,
1].
"""

import jax
import jax.numpy as jnp

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def psnr(real: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio per clip in dB, float32 [B]: peak 1, mean squared error over the
    whole clip.

    Args:
        real, reconstruction: [B, F, H, W, 3] in [0, 1].
    """
    error = jnp.square(real.astype(jnp.float32) - reconstruction.astype(jnp.float32)).mean(
        axis=(1, 2, 3, 4)
    )
    # Equal clips get 100 dB instead of infinity.
    return -10.0 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(real: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Structural similarity per clip, float32 [B]: mean over frames, channels and all whole
    windows.

    Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, range 1,
    population (co)variances.

    Args:
        real, reconstruction: [B, F, H, W, 3] in [0, 1]; H and W at least 11.
    """
    if min(real.shape[2:4]) < WINDOW:
        raise ValueError(f"ssim needs frames of at least {WINDOW} pixels, but got {real.shape}")
    x, y = real.astype(jnp.float32), reconstruction.astype(jnp.float32)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    values = (
        (2 * mean_x * mean_y + C1)
        * (2 * covariance + C2)
        / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))
    )
    return values.mean(axis=(1, 2, 3, 4))


def _blur(video: jax.Array) -> jax.Array:
    """Gaussian mean over windows that lie whole inside the frame: [B, F, H, W, 3] -> [B, F, H - 10,
    W - 10, 3].
    """
    taps = jnp.exp(-0.5 * ((jnp.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    taps = taps / taps.sum()
    for axis in (2, 3):
        size = video.shape[axis] - WINDOW + 1
        video = sum(
            taps[i] * jax.lax.slice_in_dim(video, i, i + size, axis=axis) for i in range(WINDOW)
        )
    return video
