"""Starting values that know where tokens lie: positions as waves over (t, h, w), latents spread evenly among them.

The official program starts positions and latents as noise, in which no two tokens are nearer to each other than others.
Both tables are learned all the same; only where they start differs, so checkpoints of either kind have the same form. For `config.transformer.initialization == "grid"`.
"""

import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

from mebt_jax.transformer.model import MeBT

# Root mean square of the entries, the standard deviation of the official noise (mebt/transformer.py:140).
SCALE = 0.02


def place_on_grid(model: MeBT, grid: tuple[int, int, int]) -> None:
    """Overwrites positions and latents of a model that was just made for clips of this (T, H, W)."""
    width = model.latents.shape[1]
    model.position_embedding[...] = jnp.asarray(position_table(grid, width))
    model.latents[...] = jnp.asarray(latent_table(grid, model.latents.shape[0], width))


def position_table(grid: tuple[int, int, int], width: int) -> np.ndarray:
    """Waves at each point of the grid, float32 [N, D], rows in flat (t, h, w) order."""
    axes = np.meshgrid(*[np.arange(size) + 0.5 for size in grid], indexing="ij")
    return waves(np.stack(axes, axis=-1).reshape(-1, 3), grid, width)


def latent_table(grid: tuple[int, int, int], latents: int, width: int) -> np.ndarray:
    """Waves at places that fill the grid evenly (a Halton sequence), float32 [L, D]."""
    points = qmc.Halton(d=3, scramble=False).random(latents)
    return waves(points * np.array(grid), grid, width)


def waves(places: np.ndarray, grid: tuple[int, int, int], width: int) -> np.ndarray:
    """Sines and cosines of places [n, 3] in grid cells, float32 [n, D].

    Every axis has a third of the width, with wavelengths from twice its size down to two cells in even ratios; what does
    not divide stays 0.
    """
    frequencies = width // 6  # per axis, each with a sine and a cosine
    columns = []
    for axis, size in enumerate(grid):
        wavelengths = np.geomspace(2 * max(size, 2), 2, frequencies)
        phases = 2 * np.pi * places[:, axis, None] / wavelengths
        columns += [np.sin(phases), np.cos(phases)]
    table = np.zeros((len(places), width), np.float32)
    table[:, :6 * frequencies] = np.sqrt(2) * SCALE * np.concatenate(columns, axis=1)
    return table
