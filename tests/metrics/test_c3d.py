"""What C3D is given; its values are those of the official program
(interop/test_official_features.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mebt_jax.metrics.networks.c3d import C3D, FRAMES, c3d_features


class Inputs:
    """A network of this mean that returns its inputs."""

    def __init__(self, mean):
        self.mean = nnx.Param(jnp.asarray(mean))

    def features(self, pixels):
        return pixels


def test_pixels_are_in_bgr_order_around_128_minus_the_mean():
    colours = np.array([0, 100, 255], np.uint8)  # red, green, blue
    video = np.broadcast_to(colours, (2, FRAMES, 10, 14, 3))
    mean = np.zeros((FRAMES, 112, 112, 3), np.float32)
    mean[..., 0] = 7.0  # of blue
    pixels = c3d_features(Inputs(mean), jnp.asarray(video))
    assert pixels.shape == (2, FRAMES, 112, 112, 3)
    blue, green, red = (128 / 127.5) * colours[::-1].astype(np.float32)
    expected = np.broadcast_to([blue - 7, green, red], pixels.shape)
    np.testing.assert_allclose(pixels, expected, rtol=1e-5, atol=1e-4)


def test_sizes_follow_from_width_and_hidden():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: C3D(2, 8, 5, rngs=nnx.Rngs(0))))
    video = jax.ShapeDtypeStruct((3, FRAMES, 32, 32, 3), jnp.uint8)
    features = jax.eval_shape(
        lambda state, video: c3d_features(nnx.merge(graphdef, state), video), state, video
    )
    assert features.shape == (3, 8)
