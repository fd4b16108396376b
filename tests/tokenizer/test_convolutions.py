"""Every formulation of the 3D convolution against XLA's own, with gradients: odd sizes, strides per axis, no cubes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mebt_jax.tokenizer import convolutions

DIMENSIONS = ("NDHWC", "DHWIO", "NDHWC")


def transposed_by_zeros(x, kernel, strides):
    """Reference: zeros between the inputs, k - 1 of padding, k - 1 cut off again, kernel reversed."""
    return lax.conv_general_dilated(x, jnp.flip(kernel, (0, 1, 2)), (1, 1, 1), "VALID", lhs_dilation=strides,
                                    dimension_numbers=DIMENSIONS)


def inputs(size, kernel_size, channels=(3, 5)):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, channels[0])).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((*kernel_size, *channels)).astype(np.float32))


def assert_same_function(f, g, *args):
    """Equal values, and equal gradients of a random linear function of them."""
    expected = g(*args)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32))
    gradients = [jax.grad(lambda *a, h=h: jnp.sum(h(*a) * weights), tuple(range(len(args))))(*args) for h in (f, g)]
    np.testing.assert_allclose(f(*args), expected, rtol=1e-4, atol=1e-4)
    for actual, wanted in zip(*gradients):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("size, kernel_size, strides", [
    ((5, 7, 6), (3, 3, 3), (1, 1, 1)),
    ((3, 4, 5), (1, 1, 1), (1, 1, 1)),
    ((7, 8, 10), (4, 4, 4), (1, 2, 2)),
    ((9, 6, 7), (4, 2, 3), (2, 1, 3)),
    ((8, 5, 6), (4, 4, 4), (2, 1, 2)),
])
def test_convolution_by_taps_is_the_3d_convolution(size, kernel_size, strides):
    assert_same_function(lambda x, k: convolutions.convolve_by_taps(x, k, strides),
                         lambda x, k: convolutions.convolve_directly(x, k, strides), *inputs(size, kernel_size))


@pytest.mark.parametrize("size, kernel_size, strides", [
    ((4, 5, 6), (4, 4, 4), (2, 2, 2)),
    ((6, 4, 3), (4, 4, 4), (1, 2, 2)),
    ((5, 6, 7), (3, 3, 3), (1, 1, 1)),
    ((4, 3, 5), (6, 2, 4), (3, 2, 1)),
])
def test_transposed_convolution_inserts_zeros_and_cuts_the_border(size, kernel_size, strides):
    assert_same_function(lambda x, k: convolutions.convolve_transposed(x, k, strides),
                         lambda x, k: transposed_by_zeros(x, k, strides), *inputs(size, kernel_size))


def test_padding_replicates_the_border_with_the_odd_pixel_in_front():
    x = jnp.arange(4.0).reshape(1, 4, 1, 1, 1)
    padded = convolutions.pad_same(x, (4, 1, 1), (1, 1, 1))
    np.testing.assert_array_equal(padded.ravel(), [0, 0, 0, 1, 2, 3, 3])


@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2), (2, 2, 1)])
def test_layers_divide_and_multiply_the_size_by_their_strides(strides):
    down = convolutions.SameConv3d(3, 4, (4, 4, 4), strides, dtype=jnp.float32, rngs=nnx.Rngs(0))
    up = convolutions.SameConvTranspose3d(4, 2, (4, 4, 4), strides, dtype=jnp.float32, rngs=nnx.Rngs(0))
    y = down(jnp.ones((1, 2, 4, 6, 3)))
    assert y.shape == (1, 2 // strides[0], 4 // strides[1], 6 // strides[2], 4)
    assert up(y).shape == (1, 2, 4, 6, 2)


def test_initial_layers_keep_the_variance():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 8, 32))
    down = convolutions.SameConv3d(32, 32, (4, 4, 4), (2, 2, 2), dtype=jnp.float32, rngs=nnx.Rngs(0))
    up = convolutions.SameConvTranspose3d(32, 32, (4, 4, 4), (2, 2, 2), dtype=jnp.float32, rngs=nnx.Rngs(1))
    assert float(down(x).std()) == pytest.approx(1, abs=0.15)
    assert float(up(x).std()) == pytest.approx(1, abs=0.15)
