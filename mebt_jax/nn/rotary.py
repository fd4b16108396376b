"""Rotary positions over (t, h, w), for the `modern` flavour: attention sees how far apart two
tokens lie.

Queries and keys are turned by angles that grow with their place (Su et al. 2021), a third of the
pairs for each axis. Latents have places too: they fill the grid evenly. What the model learns of
one place of the clip then holds at every other.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

Grid = tuple[int, int, int]  # (T, H, W) of a whole clip


def frequencies(grid: Grid, head_width: int) -> np.ndarray:
    """Radians per cell of each pair along each axis, float32 [Dh / 2, 3].

    Wavelengths run in even ratios from two cells to four times the axis, so that no two cells of a
    clip look alike. Pairs that do not divide by three are not turned.
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
    places = jnp.stack(
        [positions // (height * width), positions // width % height, positions % width], axis=-1
    )
    return (places + 0.5) @ frequencies(grid, head_width).T


def latent_angles(latents: int, grid: Grid, head_width: int) -> np.ndarray:
    """Angles of the latents, at the points of a Halton sequence: float32 [L, Dh / 2]."""
    places = qmc.Halton(d=3, scramble=False).random(latents) * np.array(grid)
    return (places @ frequencies(grid, head_width).T).astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the pairs (x[..., i], x[..., Dh / 2 + i]) of heads [B, S, K, Dh] by angles [B, S, Dh /
    2]; float32 inside.
    """
    cosine, sine = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [B, S, 1, Dh / 2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, first * sine + second * cosine], axis=-1
    ).astype(x.dtype)
