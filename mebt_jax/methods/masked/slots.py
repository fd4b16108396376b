"""Arrays [B, N] whose rows are the clips, indexed by slot or by position; and their random noise.

The noise of a token follows from its clip's key, the pass and its position alone. So a clip comes
out the same whatever the other clips of its batch, the padding or the block size are (up to
rounding in the model), and every clip can be drawn again alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def fold(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    """fold_in for keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def noise_by_position(
    draw: Callable[..., jax.Array], keys: jax.Array, num_tokens: int
) -> jax.Array:
    """Float32 [B, N] from keys [B]; `draw` is jax.random.uniform or the like."""
    return jax.vmap(lambda key: draw(key, (num_tokens,), jnp.float32))(keys)


def take(x: jax.Array, indices: jax.Array) -> jax.Array:
    """x [B, N] at indices [B, S]."""
    return jnp.take_along_axis(x, indices, axis=1)


def put(x: jax.Array, indices: jax.Array, values: jax.Array) -> jax.Array:
    """x [B, N] with values [B, S] at indices [B, S]; indices out of range are left out."""
    return x.at[jnp.arange(len(x))[:, None], indices].set(values, mode="drop")


def ranks(scores: jax.Array) -> jax.Array:
    """int32 [B, M]: rank of each score in rising order, ties in order of their index."""
    order = jnp.argsort(scores, axis=1, stable=True)
    in_order = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    return put(jnp.zeros(scores.shape, jnp.int32), order, in_order)
