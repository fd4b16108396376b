"""Random features are fixed, equal a plain network in NumPy, and differ with the motion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.networks.random_features import random_features


def squares(count: int, speed: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    video = np.zeros((count, 8, 16, 16, 3), np.uint8)
    for clip in video:
        x, y, colour = rng.integers(0, 12), rng.integers(0, 12), rng.integers(80, 255, 3)
        for f in range(8):
            clip[f, y : y + 4, (x + f * speed) % 12 : (x + f * speed) % 12 + 4] = colour
    return video


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """3x3x3 convolution of [B, F, H, W, c] with stride 2 and zeros outside, in NumPy."""
    # As many results as half of the size, rounded up; an odd number of zeros has one more behind,
    # but in time one frame of zeros is always in front.
    behind = [1 + x.shape[1] % 2, *(1 for _ in x.shape[2:4])]
    front = [1, *(n % 2 for n in x.shape[2:4])]
    padded = np.pad(x, [(0, 0), *zip(front, behind), (0, 0)])
    cells = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(1, 2, 3))
    return np.einsum("bfhwcijk,ijkco->bfhwo", cells[:, ::2, ::2, ::2], kernel)


@pytest.mark.parametrize("size", [(5, 12, 13), (8, 10, 16)])
def test_features_are_those_of_three_3d_convolutions(size):
    video = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    x, draws, expected = video / 127.5 - 1, np.random.RandomState(0), []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        kernel = draws.standard_normal((3, 3, 3, inputs, outputs)) * (2 / (27 * inputs)) ** 0.5
        x = np.maximum(convolved(x, kernel), 0)
        expected += [x.mean(axis=(1, 2, 3)), x.std(axis=(1, 2, 3))]
    found = jax.jit(random_features)(video)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=-1), rtol=1e-4, atol=1e-5)


def test_other_motion_is_farther_than_other_clips():
    features = jax.jit(random_features)
    slow, slow_again, fast = (
        np.asarray(features(jnp.asarray(squares(96, speed, seed))))
        for speed, seed in ((0, 0), (0, 1), (3, 2))
    )
    assert slow.shape == (96, 224) and slow.dtype == np.float32
    np.testing.assert_array_equal(slow, features(jnp.asarray(squares(96, 0, 0))))
    assert frechet_distance(slow, fast) > 1.5 * frechet_distance(slow, slow_again)
