"""Orders in which the draft passes commit tokens, by the name in `config.decoding.order`.

An order is known before the passes, but for "confidence", where each pass commits the tokens that
it is surest of.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

Grid = tuple[int, int, int]


class Order(NamedTuple):
    """`ranks(keys [B], random_ranks [B, N], grid)` gives the rank of every position, [B, N].

    The random ranks are those of a uniformly random order.
    """

    ranks: Callable[[jax.Array, jax.Array, Grid], jax.Array]
    by_confidence: bool = False  # the passes choose; the ranks only order the slots


def raster_ranks(keys: jax.Array, random_ranks: jax.Array, grid: Grid) -> jax.Array:
    """The flat (t, h, w) index."""
    return jnp.broadcast_to(jnp.arange(random_ranks.shape[1]), random_ranks.shape)


def random_order(keys: jax.Array, random_ranks: jax.Array, grid: Grid) -> jax.Array:
    return random_ranks


def shifted_halton(keys: jax.Array, random_ranks: jax.Array, grid: Grid) -> jax.Array:
    """Halton ranks int32 [B, N], shifted around the grid by a random distance per clip.

    The shift keeps the order evenly spread.
    """
    shift = jax.vmap(lambda key: jax.random.randint(key, (3,), 0, jnp.array(grid)))(
        jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    )  # [B, 3]
    cells = jnp.stack(jnp.meshgrid(*map(jnp.arange, grid), indexing="ij"), axis=-1)
    shifted = (cells.reshape(1, -1, 3) + shift[:, None]) % jnp.array([[grid]])  # [B, N, 3]
    t, h, w = jnp.moveaxis(shifted, -1, 0)  # [B, N] each
    return jnp.asarray(halton_ranks(grid))[t, h, w]


ORDERS = {
    "confidence": Order(raster_ranks, by_confidence=True),
    "random": Order(random_order),
    "halton": Order(shifted_halton),
}


@functools.lru_cache(maxsize=8)
def halton_ranks(grid: Grid) -> np.ndarray:
    """Rank of every cell of the grid (T, H, W) in a 3-D Halton sequence, int32 [T, H, W].

    The ranks are 0 .. N - 1. The sequence visits the cells so that any first part of it is spread
    evenly over time, height and width (Besnier et al., "Halton Scheduler for Masked Generative
    Image Transformer", ICLR 2025, with time as a third axis).
    """
    num_cells = int(np.prod(grid))
    sequence = qmc.Halton(d=3, scramble=False)
    cells = np.empty(0, np.int64)
    visited = np.empty(0, np.int64)
    while len(visited) < num_cells:  # after a few times N points every cell has been visited
        points = (sequence.random(4 * num_cells) * grid).astype(np.int64)
        cells = np.concatenate([cells, np.ravel_multi_index(points.T, grid)])
        unique, first = np.unique(cells, return_index=True)
        visited = unique[np.argsort(first)]
    ranks = np.empty(num_cells, np.int32)
    ranks[visited] = np.arange(num_cells)
    return ranks.reshape(grid)
