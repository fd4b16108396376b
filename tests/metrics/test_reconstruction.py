"""PSNR and SSIM against their definitions, SSIM through scipy's own Gaussian filter."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mebt_jax.metrics.distances.reconstruction import psnr, ssim

RNG = np.random.default_rng(0)
REAL = RNG.random((2, 3, 16, 20, 3)).astype(np.float32)
NOISY = np.clip(REAL + 0.1 * RNG.standard_normal(REAL.shape), 0, 1).astype(np.float32)


def test_psnr_is_the_definition():
    expected = [10 * np.log10(1 / np.mean((a - b) ** 2)) for a, b in zip(REAL, NOISY)]
    np.testing.assert_allclose(psnr(jnp.asarray(REAL), jnp.asarray(NOISY)), expected, rtol=1e-5)
    assert np.isfinite(psnr(jnp.asarray(REAL), jnp.asarray(REAL))).all()


def test_ssim_equals_a_scipy_reference():
    def reference(x, y):
        blur = lambda image: gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]  # noqa: E731
        mean_x, mean_y = blur(x), blur(y)
        variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        return np.mean(
            (2 * mean_x * mean_y + 1e-4)
            * (2 * covariance + 9e-4)
            / ((mean_x**2 + mean_y**2 + 1e-4) * (variances + 9e-4))
        )

    x, y = REAL.astype(np.float64), NOISY.astype(np.float64)
    expected = [
        np.mean([reference(x[b, f, ..., c], y[b, f, ..., c]) for f in range(3) for c in range(3)])
        for b in range(2)
    ]
    np.testing.assert_allclose(ssim(jnp.asarray(REAL), jnp.asarray(NOISY)), expected, atol=1e-5)
    np.testing.assert_allclose(ssim(jnp.asarray(REAL), jnp.asarray(REAL)), [1.0, 1.0], atol=1e-6)


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11"):
        ssim(jnp.zeros((1, 1, 8, 8, 3)), jnp.zeros((1, 1, 8, 8, 3)))
