"""From logits to codes: temperature, top-k, top-p and the draw itself. The decoder calls this block
by block.

All arithmetic is float32. Every draw takes explicit keys, one per token, so a token's noise depends
on its clip, pass and position only, never on how many other tokens are predicted beside it. Noise
is made for few codes: with top-k for the k that are left, else first for groups of codes and then
inside the group drawn, which is the same distribution at a fraction of the random numbers.
"""

import math

import jax
import jax.numpy as jnp

from mebt_jax.errors import UserError

TEMPERATURE_FLOOR = (
    1e-8  # Note: mebt/transformer.py:860 adds this, so temperature 0 means the most probable code.
)


def draw_codes(
    keys: jax.Array, logits: jax.Array, temperature: jax.Array | float, *, top_k: int, top_p: float
) -> tuple[jax.Array, jax.Array]:
    """Draws one code per token after temperature, then top-k, then top-p (sample_from_logits,
    mebt/transformer.py:843).

    Args:
        keys: [B, M] typed keys.
        logits: [B, M, V].
        temperature: scalar, may be traced.
        top_k: 0 keeps all codes.
        top_p: 1 keeps all codes.

    Returns:
        codes int32 [B, M] and their log-probabilities [B, M] under the filtered distribution.
    """
    logits = logits.astype(jnp.float32) / (temperature + TEMPERATURE_FLOOR)
    if not top_k:
        return draw(keys, _log_probabilities(logits, top_p))
    values, candidates = largest(logits, top_k)  # [B, M, k]
    places, log_probabilities = draw(keys, _log_probabilities(values, top_p))
    return jnp.take_along_axis(candidates, places[..., None], axis=-1)[..., 0], log_probabilities


def largest(logits: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of the last axis [..., V] in falling order, and their codes int32: [..., k]
    each.

    They all lie in the k groups of codes with the largest maxima, so only those groups are
    searched.
    Note: transformer.py:891 keeps every code that ties with the k-th; here the lowest of them stay.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise UserError(
            f"config.sample.top_k is {k}, but the tokenizer has {logits.shape[-1]} codes; use 0 "
            "for no limit."
        )
    grouped = _groups(logits)  # [..., G, S]
    groups, size = grouped.shape[-2:]
    if groups <= k:
        return jax.lax.top_k(logits, k)
    # Rising, so that of equal logits the lower code comes first, as in one search over all.
    chosen = jnp.sort(jax.lax.top_k(grouped.max(axis=-1), k)[1], axis=-1)  # [..., k]
    searched = jnp.take_along_axis(grouped, chosen[..., None], axis=-2)  # [..., k, S]
    values, places = jax.lax.top_k(searched.reshape(*searched.shape[:-2], k * size), k)
    return values, jnp.take_along_axis(chosen, places // size, axis=-1) * size + places % size


def top_p_probabilities(probabilities: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of codes [..., V] whose probability reaches p, renormalised
    (transformer.py:898).

    A code stays if those before it in falling order sum to less than p, so the code that crosses p
    stays too and the most probable one always does.
    """
    if not 0 < p <= 1:
        raise UserError(
            f"config.sample.top_p is {p}, but must be above 0 and at most 1 (1 keeps all codes)."
        )
    order = jnp.argsort(probabilities, axis=-1, descending=True, stable=True)
    falling = jnp.take_along_axis(probabilities, order, axis=-1)
    reached = jnp.cumsum(falling, axis=-1) >= p
    removed_in_order = jnp.concatenate(
        [jnp.zeros_like(reached[..., :1]), reached[..., :-1]], axis=-1
    )
    removed = jnp.take_along_axis(removed_in_order, jnp.argsort(order, axis=-1), axis=-1)
    kept = jnp.where(removed, 0.0, probabilities)
    return kept / kept.sum(axis=-1, keepdims=True)


def draw(keys: jax.Array, log_probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gumbel-max draw from each distribution with its own key: of a group of codes, then of a code
    in the group.

    Not the inverse of the cumulative sum, though that takes one random number: its thousands of
    edges all move with the rounding of the model, so that the same seed would often give another
    code on another device.

    Args:
        keys: [B, M] typed keys.
        log_probabilities: [B, M, V], normalised.

    Returns:
        codes int32 [B, M] and their log-probabilities [B, M].
    """
    grouped = _groups(log_probabilities)  # [B, M, G, S]
    groups, size = grouped.shape[-2:]
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (groups + size,), jnp.float32)))(
        keys
    )
    group = jnp.argmax(jax.nn.logsumexp(grouped, axis=-1) + noise[..., :groups], axis=-1)  # [B, M]
    inside = jnp.take_along_axis(grouped, group[..., None, None], axis=-2)[..., 0, :]  # [B, M, S]
    place = jnp.argmax(inside + noise[..., groups:], axis=-1)
    log_probability = jnp.take_along_axis(inside, place[..., None], axis=-1)[..., 0]
    return (group * size + place).astype(jnp.int32), log_probability


def _log_probabilities(logits: jax.Array, top_p: float) -> jax.Array:
    if top_p == 1:
        return jax.nn.log_softmax(logits, axis=-1)
    return jnp.log(top_p_probabilities(jax.nn.softmax(logits, axis=-1), top_p))


def _groups(x: jax.Array) -> jax.Array:
    """[..., V] -> [..., G, S] with G near the root of V, padded at the end with -inf."""
    codes = x.shape[-1]
    size = 2 ** math.ceil(math.log2(codes) / 2)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -codes % size)], constant_values=-jnp.inf)
    return padded.reshape(*x.shape[:-1], -1, size)
