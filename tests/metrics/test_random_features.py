"""Random features are fixed, equal the direct 3D convolution, and tell different motion apart."""

import jax
import jax.numpy as jnp
import numpy as np

from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.networks.random_features import _strided_convolution, random_features


def squares(count: int, speed: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    video = np.zeros((count, 8, 16, 16, 3), np.uint8)
    for clip in video:
        x, y, colour = rng.integers(0, 12), rng.integers(0, 12), rng.integers(80, 255, 3)
        for f in range(8):
            clip[f, y : y + 4, (x + f * speed) % 12 : (x + f * speed) % 12 + 4] = colour
    return video


def test_sum_over_taps_is_the_3d_convolution():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 3, 2, 4)).astype(np.float32)
    for frames in (5, 8):
        x = rng.standard_normal((1, frames, 4, 4, 2)).astype(np.float32)
        padded = np.pad(x, ((0, 0), (1, 1), (0, 1), (0, 1), (0, 0)))
        direct = np.array(
            [
                [
                    [
                        np.einsum(
                            "dhwi,dhwio->o", padded[0, t : t + 3, y : y + 3, z : z + 3], kernel
                        )
                        for z in (0, 2)
                    ]
                    for y in (0, 2)
                ]
                for t in range(0, frames, 2)
            ]
        )
        np.testing.assert_allclose(jax.jit(_strided_convolution)(x, kernel)[0], direct, atol=1e-4)


def test_other_motion_is_farther_than_other_clips():
    features = jax.jit(random_features)
    slow, slow_again, fast = (
        np.asarray(features(jnp.asarray(squares(96, speed, seed))))
        for speed, seed in ((0, 0), (0, 1), (3, 2))
    )
    assert slow.shape == (96, 224) and slow.dtype == np.float32
    np.testing.assert_array_equal(slow, features(jnp.asarray(squares(96, 0, 0))))
    assert frechet_distance(slow, fast) > 1.5 * frechet_distance(slow, slow_again)
