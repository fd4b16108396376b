"""Attention over several padded sets of keys, and dropout with explicit keys: the two primitives
below `blocks`.

A set of tokens is split over devices along its length (`runtime.mesh`), so nothing here joins sets
or looks at a whole one: of each set come the largest score, the sum of the weights and the weighted
sum of the values, and only these are combined.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mebt_jax.nn import attention_kernels
from mebt_jax.runtime.mesh import on_each_device, platform, splits


class KeySet(NamedTuple):
    """What a stream of S tokens offers to those that ask."""

    key: jax.Array  # [B, S, K, Dh]; S may be 0, padding must be finite
    value: jax.Array  # [B, S, K, Dh]
    valid: jax.Array | None  # [B, S] bool; None where every key is


def attend(
    query: jax.Array,
    asked: Sequence[KeySet],
    *,
    how: str = "kernel",
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention over all keys of `asked` together, that never looks at padding.

    Args:
        query: [B, Q, K, Dh].
        asked: sets of keys and values.
        how: "kernel" for that of the platform where it applies, "sums" to go without
            (`config.transformer.attention`).
        dropout_rate: share of attention weights dropped.
        dropout_key: random key; None is deterministic.

    Returns:
        [B, Q, K, Dh] in the type of the values. A clip without any valid key gets zeros, as the sum
        over no keys is.
        Note: official gpt.py:133-136 gives the same, since softmax over an empty axis times an
            empty value is zero; a
        softmax over padding alone would instead give the mean of the padding.
    """
    dtype = asked[0].value.dtype
    asked = [one for one in asked if one.key.shape[1]]
    if not asked:
        return jnp.zeros(query.shape, dtype)
    no_dropout = dropout_key is None or dropout_rate == 0.0
    if how == "kernel" and no_dropout and not splits("tokens"):
        keys = sum(one.key.shape[1] for one in asked)
        if platform() == "tpu" and attention_kernels.fits_splash(query.shape[1], keys):
            return _attend_by_kernel(attention_kernels.splash_attend, query, asked)
        if platform() == "gpu" and attention_kernels.fits_cudnn(query, keys):
            return _attend_by_kernel(attention_kernels.cudnn_attend, query, asked)
    return _attend_by_sums(query, asked, dropout_rate, dropout_key)


def _attend_by_kernel(
    kernel: Callable[..., jax.Array], query: jax.Array, asked: Sequence[KeySet]
) -> jax.Array:
    keys, values = (
        jnp.concatenate(parts, axis=1) for parts in zip(*((one.key, one.value) for one in asked))
    )
    valid = jnp.concatenate(
        [jnp.ones(one.key.shape[:2], bool) if one.valid is None else one.valid for one in asked],
        axis=1,
    )  # [B, S]
    heads = ("batch", None, "heads", None)
    return on_each_device(kernel, (heads, heads, heads, ("batch", None)), heads)(
        query, keys, values, valid
    )


def _attend_by_sums(
    query: jax.Array, asked: Sequence[KeySet], dropout_rate: float, dropout_key: jax.Array | None
) -> jax.Array:
    dtype = asked[0].value.dtype
    scores = [_scores(query * query.shape[-1] ** -0.5, one) for one in asked]  # [B, K, Q, S] each
    # Any number of this size would do: the weights are divided by their sum, so it has no gradient.
    highest = jnp.stack([one.max(axis=-1, keepdims=True) for one in scores]).max(axis=0)
    highest = jax.lax.stop_gradient(highest)  # [B, K, Q, 1]
    keys = [None] * len(asked) if dropout_key is None else jax.random.split(dropout_key, len(asked))
    total, result = 0.0, 0.0
    for one, of_set, key in zip(asked, scores, keys):
        weights = jnp.exp(of_set - highest)
        if one.valid is not None:
            weights = jnp.where(one.valid[:, None, None, :], weights, 0.0)
        total = total + weights.sum(axis=-1)  # [B, K, Q]
        dropped = dropout(weights, dropout_rate, key).astype(dtype)
        result = result + jnp.einsum(
            "bkqs,bskd->bqkd", dropped, one.value, preferred_element_type=jnp.float32
        )
    total = jnp.where(total == 0.0, 1.0, total).swapaxes(1, 2)  # [B, Q, K]
    return (result / total[..., None]).astype(dtype)


def _scores(query: jax.Array, asked: KeySet) -> jax.Array:
    """Float32 [B, K, Q, S]; padding gets the smallest number, which is finite so that gradients are
    too.
    """
    scores = jnp.einsum("bqkd,bskd->bkqs", query, asked.key, preferred_element_type=jnp.float32)
    return (
        scores
        if asked.valid is None
        else jnp.where(asked.valid[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    )


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales up the rest; the identity for `key=None` or
    rate 0.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
