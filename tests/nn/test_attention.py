"""Attention against JAX's own, and its behaviour on padding and empty key sets."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.nn import attention, attention_kernels
from mebt_jax.nn.attention import KeyValue, dropout
from mebt_jax.nn.attention import attend as attend_sets


def arrays(batch=3, queries=4, keys=5, heads=2, width=8):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(batch, n, heads, width)), jnp.float32)
        for n in (queries, keys, keys)
    )


def attend(query, key, value, valid):
    """Attention to one set of keys."""
    return attend_sets(query, [KeyValue(key, value, valid)])


def test_equals_the_library_function():
    query, key, value = arrays()
    valid = jnp.array([[True] * 5, [True, False, True, False, False], [False] * 4 + [True]])
    expected = jax.nn.dot_product_attention(
        query, key, value, mask=jnp.broadcast_to(valid[:, None, None], (3, 2, 4, 5))
    )
    np.testing.assert_allclose(attend(query, key, value, valid), expected, atol=1e-6)
    np.testing.assert_allclose(
        attend(query, key, value, None), jax.nn.dot_product_attention(query, key, value), atol=1e-6
    )


def test_no_valid_key_gives_zeros_for_that_clip_only():
    query, key, value = arrays()
    valid = jnp.array([[True] * 5, [False] * 5, [True] * 5])
    out = attend(query, key, value, valid)
    np.testing.assert_array_equal(out[1], 0.0)
    np.testing.assert_allclose(out[::2], attend(query, key, value, None)[::2], atol=1e-6)
    np.testing.assert_array_equal(
        attend(query, key[:, :0], value[:, :0], valid[:, :0]), jnp.zeros_like(query)
    )


def test_padding_has_no_influence_and_no_gradient():
    query, key, value = arrays()
    valid = jnp.array([[True, True, False, False, True], [False] * 5, [True] * 5])
    junk = jnp.where(valid[..., None, None], 0.0, 1e4)
    np.testing.assert_array_equal(
        attend(query, key, value, valid), attend(query, key + junk, value + junk, valid)
    )
    gradients = jax.grad(lambda qkv: jnp.sum(attend(*qkv, valid) ** 2))(
        (query, key + junk, value + junk)
    )
    assert all(np.isfinite(g).all() for g in gradients)
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(valid)], 0.0)


def test_several_sets_are_attended_to_as_one():
    query, key, value = arrays(keys=7)
    valid = jnp.array([[True] * 7, [True, False, True, False, False, True, False], [False] * 7])
    cut = [
        KeyValue(key[:, part], value[:, part], valid[:, part])
        for part in (slice(0, 4), slice(4, 4), slice(4, 7))
    ]
    whole, gradients = jax.value_and_grad(lambda q: jnp.sum(attend(q, key, value, valid) ** 2))(
        query
    )
    ours, our_gradients = jax.value_and_grad(lambda q: jnp.sum(attend_sets(q, cut) ** 2))(query)
    np.testing.assert_allclose(ours, whole, rtol=1e-6)
    np.testing.assert_allclose(our_gradients, gradients, atol=1e-6)
    np.testing.assert_allclose(
        attend_sets(query, [cut[0]._replace(valid=None), cut[2]._replace(valid=None)]),
        attend(query, key, value, None),
        atol=1e-6,
    )


def test_scores_are_float32_in_bfloat16():
    query, key, value = (x.astype(jnp.bfloat16) for x in arrays())
    out = attend(query, key, value, None)
    assert out.dtype == jnp.bfloat16
    jaxpr = str(jax.make_jaxpr(lambda *x: attend(*x, None))(query, key, value))
    assert "f32[3,2,4,5] = exp" in jaxpr
    np.testing.assert_allclose(out.astype(jnp.float32), attend(*arrays(), None), atol=0.05)


def test_dropout_is_a_function_of_its_key_and_keeps_the_mean():
    x = jnp.ones((100, 100))
    dropped = dropout(x, 0.25, jax.random.key(0))
    np.testing.assert_array_equal(dropped, dropout(x, 0.25, jax.random.key(0)))
    assert not np.array_equal(dropped, dropout(x, 0.25, jax.random.key(1)))
    assert set(np.unique(dropped)) == {np.float32(0.0), np.float32(1 / 0.75)}
    assert np.mean(dropped) == pytest.approx(1.0, abs=0.02)
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.slow
def test_the_tpu_kernel_equals_the_sums():
    query, key, value = arrays(batch=2, queries=128, keys=256, heads=2, width=64)
    valid = jnp.stack(
        [jnp.arange(256) % 3 != 0, jnp.zeros(256, bool)]
    )  # the second clip has no valid key

    def with_gradients(attention):
        return jax.jit(jax.value_and_grad(lambda qkv: jnp.sum(attention(*qkv, valid) ** 2)))(
            (query, key, value)
        )

    (ours, our_gradients), (theirs, their_gradients) = map(
        with_gradients, (functools.partial(attention_kernels.splash_attend, interpret=True), attend)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), our_gradients, their_gradients
    )
    np.testing.assert_array_equal(
        attention_kernels.splash_attend(query, key, value, valid, interpret=True)[1], 0.0
    )


def test_what_the_gpu_kernel_is_given_makes_it_equal_the_sums():
    query, key, value = arrays(batch=3, queries=4, keys=10)
    # Not at the front, so its keys must be put in order; of the second clip none.
    valid = jnp.stack([jnp.arange(10) % 3 == 1, jnp.zeros(10, bool), jnp.ones(10, bool)])

    def with_gradients(attention):
        return jax.value_and_grad(lambda qkv: jnp.sum(attention(*qkv, valid) ** 2))(
            (query, key, value)
        )

    (ours, our_gradients), (theirs, their_gradients) = map(
        with_gradients,
        (functools.partial(attention_kernels.cudnn_attend, implementation="xla"), attend),
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), our_gradients, their_gradients
    )
    np.testing.assert_array_equal(
        attention_kernels.cudnn_attend(query, key, value, valid, implementation="xla")[1], 0.0
    )


def test_a_program_for_gpus_uses_cudnn_where_it_can(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    device = types.SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(attention_kernels.jax, "local_devices", lambda: [device])
    # JAX asks the driver before it makes the program.
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(
        fused, "cuda_versions", types.SimpleNamespace(cudnn_get_version=lambda: 91900)
    )
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda _: False)

    def lowered(dtype=jnp.bfloat16, queries=16, **settings):
        query, key, value = (
            x.astype(dtype) for x in arrays(batch=2, queries=queries, keys=16, heads=2, width=64)
        )
        sets = [KeyValue(key, value, jnp.ones((2, 16), bool)), KeyValue(key, value, None)]
        loss = jax.grad(
            lambda query: jnp.sum(attend_sets(query, sets, **settings).astype(jnp.float32))
        )
        return jax.jit(loss).trace(query).lower(lowering_platforms=("cuda",)).as_text()

    assert "__cudnn$fmhaSoftmaxBackward" in lowered()
    for not_for_it in (
        {"dtype": jnp.float32},
        {"queries": 15},
        {"implementation": "xla"},
        {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)},
    ):
        assert "__cudnn" not in lowered(**not_for_it), not_for_it
    for device.compute_capability in ("7.5", "gfx90a"):  # too old, and AMD's
        assert "__cudnn" not in lowered(), device


def test_a_program_for_tpus_uses_their_kernel(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    query, key, value = arrays(batch=2, queries=128, keys=128, heads=2, width=64)
    sets = [KeyValue(key, value, jnp.ones((2, 128), bool)), KeyValue(key, value, None)]

    def lowered(**dropout):
        attend = jax.jit(lambda query: attend_sets(query, sets, **dropout))
        return attend.trace(query).lower(lowering_platforms=("tpu",)).as_text()

    assert "tpu_custom_call" in lowered()
    assert "tpu_custom_call" not in lowered(
        dropout_rate=0.1, dropout_key=jax.random.key(0)
    )  # of which it has none
