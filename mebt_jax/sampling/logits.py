"""From logits to codes: temperature, top-k, top-p and the draw itself. The decoder calls this block by block.

All arithmetic is float32. Every draw takes explicit keys, one per token, so a token's noise depends on its clip, pass and
position only, never on how many other tokens are predicted beside it.
"""

import jax
import jax.numpy as jnp

from mebt_jax.errors import UserError

TEMPERATURE_FLOOR = 1e-8  # Note: mebt/transformer.py:860 adds this, so temperature 0 means the most probable code.


def top_k_logits(logits: jax.Array, k: int) -> jax.Array:
    """Sets all but the k largest of the last axis [..., V] to -inf; codes tied with the k-th stay (transformer.py:891)."""
    if not 1 <= k <= logits.shape[-1]:
        raise UserError(f"config.sample.top_k is {k}, but the tokenizer has {logits.shape[-1]} codes; use 0 for no limit.")
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def top_p_probabilities(probabilities: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of codes [..., V] whose probability reaches p, renormalised (transformer.py:898).

    A code stays if those before it in falling order sum to less than p, so the code that crosses p stays too and the
    most probable one always does.
    """
    if not 0 < p <= 1:
        raise UserError(f"config.sample.top_p is {p}, but must be above 0 and at most 1 (1 keeps all codes).")
    order = jnp.argsort(probabilities, axis=-1, descending=True, stable=True)
    falling = jnp.take_along_axis(probabilities, order, axis=-1)
    reached = jnp.cumsum(falling, axis=-1) >= p
    removed_in_order = jnp.concatenate([jnp.zeros_like(reached[..., :1]), reached[..., :-1]], axis=-1)
    removed = jnp.take_along_axis(removed_in_order, jnp.argsort(order, axis=-1), axis=-1)
    kept = jnp.where(removed, 0.0, probabilities)
    return kept / kept.sum(axis=-1, keepdims=True)


def filtered_log_probabilities(logits: jax.Array, temperature: jax.Array | float, *, top_k: int, top_p: float) -> jax.Array:
    """Log-probabilities [..., V] after temperature, then top-k, then top-p (sample_from_logits, transformer.py:843).

    Args:
        logits: [..., V].
        temperature: scalar, may be traced.
        top_k: 0 keeps all codes.
        top_p: 1 keeps all codes.
    """
    logits = logits.astype(jnp.float32) / (temperature + TEMPERATURE_FLOOR)
    if top_k:
        logits = top_k_logits(logits, top_k)
    if top_p < 1:
        return jnp.log(top_p_probabilities(jax.nn.softmax(logits, axis=-1), top_p))
    return jax.nn.log_softmax(logits, axis=-1)


def draw(keys: jax.Array, log_probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gumbel-max draw from each distribution with its own key.

    Args:
        keys: [B, M] typed keys.
        log_probabilities: [B, M, V], normalised over what the filters left.

    Returns:
        codes int32 [B, M] and their log-probabilities [B, M] under the same filtered distribution.
    """
    num_codes = log_probabilities.shape[-1]
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (num_codes,), jnp.float32)))(keys)
    codes = jnp.argmax(log_probabilities + noise, axis=-1).astype(jnp.int32)
    return codes, jnp.take_along_axis(log_probabilities, codes[..., None], axis=-1)[..., 0]
