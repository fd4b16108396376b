"""Operations against counts by hand, through everything that a program is made of."""

import functools
import types

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mebt_jax.runtime.flops import count_flops

X, W = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
ONE = 2 * 4 * 8 * 8  # operations of X @ W


def test_every_iteration_of_a_scan_is_counted_also_of_one_inside_another():
    def layers(x, weights):  # [4, 8], [3, 8, 8]
        return jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), x, weights)[0]

    def twice(x, weights):
        return jax.lax.fori_loop(0, 5, lambda _, h: layers(h, weights), x)

    weights = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
    assert count_flops(jax.jit(layers), X, weights) == 3 * ONE
    assert count_flops(twice, X, weights) == 5 * 3 * ONE


def test_static_arguments_are_bound_before():
    @functools.partial(jax.jit, static_argnames="depth")
    def power(x, w, *, depth):
        for _ in range(depth):
            x = x @ w
        return x

    assert count_flops(functools.partial(power, depth=3), X, W) == 3 * ONE


def test_the_largest_branch_of_a_condition_is_counted():
    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert count_flops(either, X, W) == 2 * ONE


def test_batched_products_and_their_gradients():
    queries = jax.ShapeDtypeStruct((2, 6, 3, 5), jnp.float32)  # [B, Q, K, H]
    keys = jax.ShapeDtypeStruct((2, 7, 3, 5), jnp.float32)  # [B, S, K, H]

    def scores(query, key):
        return jnp.einsum("bqkh,bskh->bkqs", query, key)

    forward = 2 * 2 * 3 * 6 * 7 * 5
    assert count_flops(scores, queries, keys) == forward
    total = jax.value_and_grad(lambda *x: jnp.square(scores(*x)).sum(), argnums=(0, 1))
    assert count_flops(total, queries, keys) == 3 * forward


def layer(x, w):
    return jnp.sin(x @ w)


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (layer, 3),  # one forward, two backward
        (jax.checkpoint(layer), 4),  # and the forward one again
    ],
)
def test_what_is_computed_again_for_the_backward_pass_is_counted(function, products):
    def loss(x, w):
        return function(x, w).sum()

    assert count_flops(jax.value_and_grad(loss, argnums=(0, 1)), X, W) == products * ONE


def test_a_custom_gradient_counts_as_it_is_written():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[1] * 0))
    assert count_flops(product, X, W) == ONE
    gradient = jax.value_and_grad(lambda x, w: product(x, w).sum(), argnums=(0, 1))
    assert count_flops(gradient, X, W) == 2 * ONE  # of w it has none


def test_convolutions_forward_and_backward():
    def convolve(video, kernel):  # [1, 4, 8, 8, 3], [2, 3, 3, 3, 5]
        return jax.lax.conv_general_dilated(
            video, kernel, (2, 2, 2), "SAME", dimension_numbers=("NTHWC", "THWIO", "NTHWC")
        )

    video, kernel = jnp.zeros((1, 4, 8, 8, 3)), jnp.zeros((2, 3, 3, 3, 5))
    forward = 2 * (2 * 4 * 4 * 5) * (2 * 3 * 3 * 3)
    assert count_flops(convolve, video, kernel) == forward
    gradients = jax.grad(lambda *args: convolve(*args).sum(), argnums=(0, 1))
    backward = count_flops(gradients, video, kernel) - forward
    # The products at the border with what lies outside are counted, so a little more than twice the
    # forward pass.
    assert 2 * forward <= backward < 3.5 * forward


def test_what_one_device_computes_counts_for_all():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    rows = {"in_specs": (P("x"), P()), "out_specs": P("x"), "mesh": mesh, "check_vma": False}
    product = jax.shard_map(jnp.matmul, axis_names={"x"}, **rows)
    assert count_flops(jax.jit(product), X, W) == ONE
    copied = jax.shard_map(jnp.matmul, **rows)  # both devices along y compute the same rows
    assert count_flops(copied, X, W) == 2 * ONE


def test_every_cell_of_the_grid_of_a_kernel_is_counted():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    product = pl.pallas_call(
        kernel,
        out_shape=X,
        grid=(2,),
        in_specs=[pl.BlockSpec((2, 8), lambda i: (i, 0)), pl.BlockSpec((8, 8), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((2, 8), lambda i: (i, 0)),
    )
    assert count_flops(product, X, W) == ONE


def test_attention_of_cudnn_is_counted(monkeypatch):
    # JAX asks the driver before it traces.
    from jax._src.cudnn import fused_attention_stablehlo as fused

    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91900)
    monkeypatch.setattr(fused, "cuda_versions", versions)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda _: False)
    query = jax.ShapeDtypeStruct((2, 16, 3, 64), jnp.bfloat16)  # [B, Q, K, H]
    keys = jax.ShapeDtypeStruct((2, 32, 3, 64), jnp.bfloat16)  # [B, S, K, H]

    def attend(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn").sum()

    product = 2 * 2 * 3 * 16 * 32 * 64
    assert count_flops(attend, query, keys, keys) == 2 * product
    assert count_flops(jax.value_and_grad(attend), query, keys, keys) == 7 * product
