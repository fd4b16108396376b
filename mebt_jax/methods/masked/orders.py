"""In which order tokens are committed where that is known before the pass: random, or evenly spread
over space and time.
"""

import functools

import numpy as np
from scipy.stats import qmc


@functools.lru_cache(maxsize=8)
def halton_ranks(grid: tuple[int, int, int]) -> np.ndarray:
    """Place of every token of the grid (T, H, W) in a 3-D Halton sequence, int32 [T, H, W], each of
    0 .. N - 1 once.

    The sequence visits the cells of the grid so that any first part of it is spread evenly over
    time, height and width (Besnier et al., "Halton Scheduler for Masked Generative Image
    Transformer", ICLR 2025, with time as a third axis).
    """
    tokens = int(np.prod(grid))
    sequence = qmc.Halton(d=3, scramble=False)
    cells = np.empty(0, np.int64)
    visited = np.empty(0, np.int64)
    while len(visited) < tokens:  # after a few times N points every cell has been visited
        points = (sequence.random(4 * tokens) * grid).astype(np.int64)
        cells = np.concatenate([cells, np.ravel_multi_index(points.T, grid)])
        unique, first = np.unique(cells, return_index=True)
        visited = unique[np.argsort(first)]
    ranks = np.empty(tokens, np.int32)
    ranks[visited] = np.arange(tokens)
    return ranks.reshape(grid)
