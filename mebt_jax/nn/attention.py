"""Attention over several padded sets of keys and values, and dropout with explicit keys.

A set of tokens is split over devices along its length (`runtime.mesh`). So nothing here joins sets
or needs a whole set on one device: every set contributes its largest score, the sum of its weights
and its weighted sum of values, and only these are combined.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mebt_jax.nn import attention_kernels
from mebt_jax.runtime.sharding import is_sharded, on_each_device, platform

# How attention is computed: "auto" takes the kernel of the platform where it applies.
IMPLEMENTATIONS = ("auto", "xla")


class KeyValue(NamedTuple):
    """Projected keys and values of S tokens."""

    key: jax.Array  # [B, S, K, Dh]; S may be 0, padding must be finite
    value: jax.Array  # [B, S, K, Dh]
    valid: jax.Array | None  # [B, S] bool; None where every token is


def attend(
    query: jax.Array,
    key_values: Sequence[KeyValue],
    *,
    implementation: str = "auto",
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention over all keys of `key_values` together, never over padding.

    Args:
        query: [B, Q, K, Dh].
        key_values: sets of keys and values.
        implementation: one of IMPLEMENTATIONS.
        dropout_rate: share of attention weights dropped.
        dropout_key: random key; None is deterministic.

    Returns:
        [B, Q, K, Dh] in the type of the values. A clip without any valid key gets zeros.
        Note: official gpt.py:133-136 gives zeros too, since softmax over an empty axis times an
        empty value is zero; a softmax over padding alone would give the mean of the padding.
    """
    dtype = key_values[0].value.dtype
    key_values = [kv for kv in key_values if kv.key.shape[1]]
    if not key_values:
        return jnp.zeros(query.shape, dtype)
    no_dropout = dropout_key is None or dropout_rate == 0.0
    if implementation == "auto" and no_dropout and not is_sharded("tokens"):
        num_keys = sum(kv.key.shape[1] for kv in key_values)
        if platform() == "tpu" and attention_kernels.fits_splash(query.shape[1], num_keys):
            return _attend_by_kernel(attention_kernels.splash_attend, query, key_values)
        if platform() == "gpu" and attention_kernels.fits_cudnn(query, num_keys):
            return _attend_by_kernel(attention_kernels.cudnn_attend, query, key_values)
    return _attend_by_set(query, key_values, dropout_rate, dropout_key)


def _attend_by_kernel(
    kernel: Callable[..., jax.Array], query: jax.Array, key_values: Sequence[KeyValue]
) -> jax.Array:
    key = jnp.concatenate([kv.key for kv in key_values], axis=1)  # [B, S, K, Dh]
    value = jnp.concatenate([kv.value for kv in key_values], axis=1)
    valid = jnp.concatenate(
        [jnp.ones(kv.key.shape[:2], bool) if kv.valid is None else kv.valid for kv in key_values],
        axis=1,
    )  # [B, S]
    axes = ("batch", None, "heads", None)
    on_devices = on_each_device(kernel, (axes, axes, axes, ("batch", None)), axes)
    return on_devices(query, key, value, valid)


def _attend_by_set(
    query: jax.Array,
    key_values: Sequence[KeyValue],
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    dtype = key_values[0].value.dtype
    scores = [_scores(query * query.shape[-1] ** -0.5, kv) for kv in key_values]  # [B, K, Q, S]
    # The weights are divided by their sum, so any number of about this size gives the same result
    # and the maximum has no gradient.
    highest = jnp.stack([s.max(axis=-1, keepdims=True) for s in scores]).max(axis=0)
    highest = jax.lax.stop_gradient(highest)  # [B, K, Q, 1]
    random_keys = [None] * len(key_values)
    if dropout_key is not None:
        random_keys = jax.random.split(dropout_key, len(key_values))
    total, result = 0.0, 0.0
    for kv, set_scores, random_key in zip(key_values, scores, random_keys):
        weights = jnp.exp(set_scores - highest)
        if kv.valid is not None:
            weights = jnp.where(kv.valid[:, None, None, :], weights, 0.0)
        total = total + weights.sum(axis=-1)  # [B, K, Q]
        weights = dropout(weights, dropout_rate, random_key).astype(dtype)
        result = result + jnp.einsum(
            "bkqs,bskd->bqkd", weights, kv.value, preferred_element_type=jnp.float32
        )
    total = jnp.where(total == 0.0, 1.0, total).swapaxes(1, 2)  # [B, Q, K]
    return (result / total[..., None]).astype(dtype)


def _scores(query: jax.Array, key_value: KeyValue) -> jax.Array:
    """Float32 [B, K, Q, S]. Padding gets the smallest finite number: gradients stay finite."""
    scores = jnp.einsum("bqkd,bskd->bkqs", query, key_value.key, preferred_element_type=jnp.float32)
    if key_value.valid is None:
        return scores
    return jnp.where(key_value.valid[:, None, None, :], scores, jnp.finfo(scores.dtype).min)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales up the rest; the identity for `key=None`.

    nnx.Dropout computes the same from the same key, but builds a module for each call.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
