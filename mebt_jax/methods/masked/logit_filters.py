"""From logits to tokens: temperature, top-k, top-p and the draw itself.

All arithmetic is float32. Every draw takes explicit keys, one per token, so a token's noise depends
on its clip, pass and position only, never on how many other tokens are predicted beside it. With
top-k only the k entries that are left get noise; otherwise first the groups of the vocabulary do,
then the entries of the group drawn, which is the same distribution at a fraction of the random
numbers.
"""

import math

import jax
import jax.numpy as jnp

from mebt_jax.errors import UserError

TEMPERATURE_FLOOR = (
    1e-8  # Note: mebt/transformer.py:860 adds this, so temperature 0 means the most probable code.
)


def draw_tokens(
    keys: jax.Array, logits: jax.Array, temperature: jax.Array | float, *, top_k: int, top_p: float
) -> tuple[jax.Array, jax.Array]:
    """Draws one token per target after temperature, then top-k, then top-p (official
    transformer.py:843 `sample_from_logits`).

    Args:
        keys: [B, M] typed keys.
        logits: [B, M, V].
        temperature: scalar, may be traced.
        top_k: 0 keeps the whole vocabulary.
        top_p: 1 keeps the whole vocabulary.

    Returns:
        tokens int32 [B, M] and their log-probabilities [B, M] under the filtered distribution.
    """
    logits = logits.astype(jnp.float32) / (temperature + TEMPERATURE_FLOOR)
    if not top_k:
        return draw(keys, _log_probabilities(logits, top_p))
    values, candidates = largest(logits, top_k)  # [B, M, k]
    drawn, log_probabilities = draw(keys, _log_probabilities(values, top_p))
    tokens = jnp.take_along_axis(candidates, drawn[..., None], axis=-1)[..., 0]
    return tokens, log_probabilities


def largest(logits: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of the last axis [..., V] in falling order, and their tokens int32: [..., k]
    each.

    They all lie in the k groups of tokens with the largest maxima, so only those are searched.
    Note: transformer.py:891 keeps every token that ties with the k-th; here the lowest stay.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise UserError(
            f"config.decoding.top_k is {k}, but the vocabulary has {logits.shape[-1]} tokens; use "
            "0 for no limit."
        )
    grouped = _groups(logits)  # [..., G, S]
    groups, size = grouped.shape[-2:]
    if groups <= k:
        return jax.lax.top_k(logits, k)
    # Rising, so that of equal logits the lower token comes first, as in one search over all.
    chosen = jnp.sort(jax.lax.top_k(grouped.max(axis=-1), k)[1], axis=-1)  # [..., k]
    searched = jnp.take_along_axis(grouped, chosen[..., None], axis=-2)  # [..., k, S]
    values, found = jax.lax.top_k(searched.reshape(*searched.shape[:-2], k * size), k)
    return values, jnp.take_along_axis(chosen, found // size, axis=-1) * size + found % size


def top_p_probabilities(probabilities: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of tokens [..., V] whose probability reaches p, renormalised
    (transformer.py:898).

    A token stays if those before it in falling order sum to less than p. So the token that crosses
    p stays too, and the most probable token always does.
    """
    if not 0 < p <= 1:
        raise UserError(
            f"config.decoding.top_p is {p}, but must be above 0 and at most 1 (1 keeps all tokens)."
        )
    order = jnp.argsort(probabilities, axis=-1, descending=True, stable=True)
    falling = jnp.take_along_axis(probabilities, order, axis=-1)
    reached = jnp.cumsum(falling, axis=-1) >= p
    removed_in_order = jnp.concatenate(
        [jnp.zeros_like(reached[..., :1]), reached[..., :-1]], axis=-1
    )
    removed = jnp.take_along_axis(removed_in_order, jnp.argsort(order, axis=-1), axis=-1)
    remaining = jnp.where(removed, 0.0, probabilities)
    return remaining / remaining.sum(axis=-1, keepdims=True)


def draw(keys: jax.Array, log_probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gumbel-max draw from each distribution with its own key: first of a group of tokens, then of
    a token in the group.

    The inverse of the cumulative sum would take one random number only. But its thousands of edges
    all move with the rounding of the model, so the same seed would often give another token on
    another device.

    Args:
        keys: [B, M] typed keys.
        log_probabilities: [B, M, V], normalised.

    Returns:
        tokens int32 [B, M] and their log-probabilities [B, M].
    """
    grouped = _groups(log_probabilities)  # [B, M, G, S]
    groups, size = grouped.shape[-2:]
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (groups + size,), jnp.float32)))(
        keys
    )
    group = jnp.argmax(jax.nn.logsumexp(grouped, axis=-1) + noise[..., :groups], axis=-1)  # [B, M]
    inside = jnp.take_along_axis(grouped, group[..., None, None], axis=-2)[..., 0, :]  # [B, M, S]
    within = jnp.argmax(inside + noise[..., groups:], axis=-1)
    log_probability = jnp.take_along_axis(inside, within[..., None], axis=-1)[..., 0]
    return (group * size + within).astype(jnp.int32), log_probability


def _log_probabilities(logits: jax.Array, top_p: float) -> jax.Array:
    if top_p == 1:
        return jax.nn.log_softmax(logits, axis=-1)
    return jnp.log(top_p_probabilities(jax.nn.softmax(logits, axis=-1), top_p))


def _groups(x: jax.Array) -> jax.Array:
    """[..., V] -> [..., G, S] with G near the root of V, padded at the end with -inf."""
    vocab_size = x.shape[-1]
    size = 2 ** math.ceil(math.log2(vocab_size) / 2)
    padded = jnp.pad(
        x, [(0, 0)] * (x.ndim - 1) + [(0, -vocab_size % size)], constant_values=-jnp.inf
    )
    return padded.reshape(*x.shape[:-1], -1, size)
