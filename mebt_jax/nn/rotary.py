"""Rotary positions (RoPE, Su et al. 2021) over (t, h, w): scores depend on relative positions.

Queries and keys are rotated by angles that grow with their position, a third of the pairs of
channels for each axis. Latents have positions too, spread evenly over the grid. So what the model
learns at one position of the clip holds at every other.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

Grid = tuple[int, int, int]  # (T, H, W) of a whole clip


def frequencies(grid: Grid, head_width: int) -> np.ndarray:
    """Radians per cell of each pair along each axis, float32 [Dh / 2, 3].

    Wavelengths rise geometrically from two cells to four times the axis, so that no two cells of a
    clip get the same angles. Pairs left over after the division by three are not rotated.
    """
    pairs = head_width // 6
    table = np.zeros((head_width // 2, 3), np.float32)
    for axis, size in enumerate(grid):
        table[axis * pairs : (axis + 1) * pairs, axis] = (
            2 * np.pi / np.geomspace(2, 4 * size, pairs)
        )
    return table


def token_angles(positions: jax.Array, grid: Grid, head_width: int) -> jax.Array:
    """Angles of tokens at flat (t, h, w) indices int32 [B, S]: float32 [B, S, Dh / 2]."""
    _, height, width = grid
    cells = jnp.stack(
        [positions // (height * width), positions // width % height, positions % width], axis=-1
    )
    return (cells + 0.5) @ frequencies(grid, head_width).T


def latent_angles(latents: int, grid: Grid, head_width: int) -> np.ndarray:
    """Angles of the latents, at the points of a Halton sequence: float32 [L, Dh / 2]."""
    cells = qmc.Halton(d=3, scramble=False).random(latents) * np.array(grid)
    return (cells @ frequencies(grid, head_width).T).astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates the pairs (x[..., i], x[..., Dh / 2 + i]) of x [B, S, K, Dh].

    The angles are [B, S, Dh / 2].

    Computes in float32.
    """
    cosine, sine = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [B, S, 1, Dh / 2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, first * sine + second * cosine], axis=-1
    ).astype(x.dtype)
