"""Attention over padded key sets, and dropout with explicit keys: the two primitives below `blocks`."""

import jax
import jax.numpy as jnp


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_valid: jax.Array | None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention that never looks at padding.

    Args:
        query: [B, Q, K, Dh].
        key, value: [B, S, K, Dh]; S may be 0. Padding must be finite.
        key_valid: [B, S] bool, or None where every key is valid.
        dropout_rate: share of attention weights dropped.
        dropout_key: random key; None is deterministic.

    Returns:
        [B, Q, K, Dh] in the type of `value`. A clip without any valid key gets zeros, as the sum over no keys is.
        Note: official gpt.py:133-136 gives the same, since softmax over an empty axis times an empty value is zero; a
        softmax over padding alone would instead give the mean of the padding.
    """
    if key.shape[1] == 0:
        return jnp.zeros(query.shape, value.dtype)
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("bqkd,bskd->bkqs", query * scale, key, preferred_element_type=jnp.float32)
    if key_valid is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        valid = key_valid[:, None, None, :]  # [B, 1, 1, S]
        # The finite floor keeps the gradient of a clip without valid keys finite; the second `where` makes its weights zero.
        weights = jax.nn.softmax(jnp.where(valid, scores, jnp.finfo(scores.dtype).min), axis=-1)
        weights = jnp.where(valid, weights, 0.0)
    weights = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    return jnp.einsum("bkqs,bskd->bqkd", weights, value)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales up the rest; the identity for `key=None` or rate 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
