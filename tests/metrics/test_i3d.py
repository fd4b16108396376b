"""I3D's interface and its poolings; its values are those of the official program
(interop/test_official_features.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.metrics.networks.i3d import I3D, MIN_FRAMES, i3d_logits, max_pool


@pytest.fixture(scope="module")
def network():
    return nnx.split(nnx.eval_shape(lambda: I3D(rngs=nnx.Rngs(0))))


def test_the_values_are_400_logits_and_not_probabilities(network):
    graphdef, state = network
    video = jax.ShapeDtypeStruct((2, MIN_FRAMES, 32, 32, 3), jnp.uint8)
    program = jax.make_jaxpr(lambda state, video: i3d_logits(nnx.merge(graphdef, state), video))(
        state, video
    )
    assert program.out_avals[0].shape == (2, 400)
    assert " exp " not in str(program)  # of a softmax


def test_a_step_of_time_is_eight_frames(network):
    graphdef, state = network
    video = jax.ShapeDtypeStruct((1, 17, 224, 224, 3), jnp.float32)
    pooled = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).pooled(x), state, video)
    assert pooled.shape == (1, 2, 1024)


def test_the_pooling_takes_the_largest_of_each_window():
    x = np.random.default_rng(0).random((1, 3, 5, 4, 2)).astype(np.float32)
    # As many results as a half of the size, rounded up, with padding on both sides or behind.
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(1, 2, 3))
    expected = windows[:, ::2, ::2, ::2].max(axis=(-3, -2, -1))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), (3, 3, 3), (2, 2, 2)), expected)
