"""Every formulation of the 3D convolution against XLA's own, with gradients: odd sizes, strides per
axis, no cubes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.nn import convolutions


def transposed_by_zeros(x, kernel, strides):
    """Reference: zeros between the inputs, convolved with the reversed kernel."""
    (sf, sh, sw), (f, h, w) = strides, (s * (n - 1) + 1 for s, n in zip(strides, x.shape[1:4]))
    spread = jnp.zeros((x.shape[0], f, h, w, x.shape[-1])).at[:, ::sf, ::sh, ::sw].set(x)
    return convolutions.convolve_directly(spread, jnp.flip(kernel, (0, 1, 2)))


def inputs(size, kernel_size, channels=(3, 5)):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, channels[0])).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(
        rng.standard_normal((*kernel_size, *channels)).astype(np.float32)
    )


def assert_same_function(f, g, *args):
    """Equal values, and equal gradients of a random linear function of them."""
    shape = jax.eval_shape(g, *args).shape
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(shape).astype(np.float32))

    @jax.jit
    def values_and_gradients(*args):
        values = [f(*args), g(*args)]
        pullbacks = [jax.vjp(h, *args)[1](weights) for h in (f, g)]
        return list(zip(*((value, *gradients) for value, gradients in zip(values, pullbacks))))

    for actual, expected in values_and_gradients(*args):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "size, kernel_size, strides",
    [
        ((5, 7, 6), (3, 3, 3), (1, 1, 1)),
        ((3, 4, 5), (1, 1, 1), (1, 1, 1)),
        ((7, 8, 10), (4, 4, 4), (1, 2, 2)),
        ((9, 6, 7), (4, 2, 3), (2, 1, 3)),
        ((8, 5, 6), (4, 4, 4), (2, 1, 2)),
    ],
)
def test_convolution_by_taps_is_the_3d_convolution(size, kernel_size, strides):
    assert_same_function(
        lambda x, k: convolutions.convolve_by_taps(x, k, strides),
        lambda x, k: convolutions.convolve_directly(x, k, strides),
        *inputs(size, kernel_size),
    )


@pytest.mark.parametrize(
    "size, kernel_size, strides",
    [
        ((4, 5, 6), (4, 4, 4), (2, 2, 2)),
        ((6, 4, 3), (4, 4, 4), (1, 2, 2)),
        ((5, 6, 7), (3, 3, 3), (1, 1, 1)),
        ((4, 3, 5), (6, 2, 4), (3, 2, 1)),
    ],
)
def test_transposed_convolution_inserts_zeros_and_cuts_the_border(size, kernel_size, strides):
    assert_same_function(
        lambda x, k: convolutions.convolve_transposed(x, k, strides),
        lambda x, k: transposed_by_zeros(x, k, strides),
        *inputs(size, kernel_size),
    )


def test_padding_replicates_the_border_with_the_odd_pixel_in_front():
    x = jnp.arange(4.0).reshape(1, 4, 1, 1, 1)
    padded = convolutions.pad_same(x, (4, 1, 1), (1, 1, 1))
    np.testing.assert_array_equal(padded.ravel(), [0, 0, 0, 1, 2, 3, 3])


def down_and_up(channels, strides):
    down = convolutions.SameConv3d(
        *channels, (4, 4, 4), strides, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    up = convolutions.SameConvTranspose3d(
        *channels, (4, 4, 4), strides, dtype=jnp.float32, rngs=nnx.Rngs(1)
    )
    return down, up


@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2), (2, 2, 1)])
def test_layers_divide_and_multiply_the_size_by_their_strides(strides):
    x = jnp.ones((1, 2, 4, 6, 3))
    smaller, larger = jax.eval_shape(lambda: [layer(x) for layer in down_and_up((3, 5), strides)])
    assert smaller.shape == (1, 2 // strides[0], 4 // strides[1], 6 // strides[2], 5)
    assert larger.shape == (1, 2 * strides[0], 4 * strides[1], 6 * strides[2], 5)


def test_initial_layers_keep_the_variance():
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 32))
    for y in jax.jit(lambda: [layer(x) for layer in down_and_up((32, 32), (2, 2, 2))])():
        assert float(y.std()) == pytest.approx(1, abs=0.15)


def test_zero_padding_is_xlas_own():
    layer = convolutions.ZeroPadConv3d(
        3, 5, (3, 2, 1), (1, 2, 1), padding=(1, 2, 0), rngs=nnx.Rngs(0)
    )
    layer.bias[...] = jnp.arange(5.0)
    x, _ = inputs((4, 5, 6), (1, 1, 1))
    expected = jax.lax.conv_general_dilated(
        x,
        layer.kernel[...],
        (1, 2, 1),
        [(1, 1), (2, 2), (0, 0)],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    np.testing.assert_allclose(
        layer(x), expected + jnp.arange(5.0)[None, None, None, None], atol=1e-5
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_causal_layers_give_the_same_for_parts_as_for_the_whole(stride):
    down, up = down_and_up((3, 3), (stride, 1, 1))
    x = jax.random.normal(jax.random.key(0), (1, 1 + 4 * stride, 2, 2, 3))

    @jax.jit
    def run(x):
        def both(x, state):
            return up(down(x, state), state)

        whole, parts, frames = both(x, convolutions.CausalConvState()), [], None
        for part in (x[:, : 1 + stride], x[:, 1 + stride : 1 + 3 * stride], x[:, 1 + 3 * stride :]):
            state = convolutions.CausalConvState(frames)
            parts.append(both(part, state))
            frames = state.next_frames
        later = both(x.at[:, 1 + stride :].add(1.0), convolutions.CausalConvState())
        return whole, jnp.concatenate(parts, axis=1), later

    whole, parts, later = run(x)
    assert whole.shape == x.shape
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_allclose(later[:, : 1 + stride], whole[:, : 1 + stride], atol=1e-5)
    assert jnp.abs(later - whole)[:, 1 + stride :].max() > 0.1
