"""Measures by nearest neighbours among features: precision, recall, density, coverage, and copies
of training clips.

NumPy, float64, Euclidean distances. Kynkaanniemi et al. 2019 (precision, recall); Naeem et al. 2020
(density, coverage).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

NEIGHBOURS = 5  # k of Naeem et al.
BLOCK = 1024  # rows of the distances [N, M] that are in memory at one time


@dataclasses.dataclass(frozen=True)
class Manifold:
    """Three shares between 0 and 1, and density: 1 for perfect clips, without an upper bound."""

    precision: float  # generated clips within the radius of some real clip: fidelity
    recall: float  # real clips within the radius of some generated clip: variety
    # Real clips within whose radius a generated clip lies, over k: fidelity, robust to outliers.
    density: float
    # Real clips that have a generated clip within their radius: variety, robust to outliers.
    coverage: float


def manifold(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS) -> Manifold:
    """The four measures for real [N, D] and generated [M, D]; the radius of a clip is the distance
    to its k-th nearest neighbour in its set.

    Raises:
        ValueError: a set has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"the {k}-th neighbour needs more than {k} samples, but got {len(real)} and "
            f"{len(generated)}"
        )
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)  # [N], [M]
    # Real clips within whose radius each generated one lies.
    neighbours = np.zeros(len(generated), np.int64)  # [M]
    recalled, covered = [], []
    for rows, distances in _distances(real, generated):
        within = distances < real_radii[rows, None]  # [b, M]
        neighbours += within.sum(axis=0)
        covered.append(within.any(axis=1))
        recalled.append((distances < generated_radii).any(axis=1))
    return Manifold(
        precision=float((neighbours > 0).mean()),
        recall=float(np.concatenate(recalled).mean()),
        density=float(neighbours.mean() / k),
        coverage=float(np.concatenate(covered).mean()),
    )


def nearest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index int64 [N], distance [N]) of the row of y [M, D] that is nearest to each row of x [N,
    D].
    """
    parts = [(distances.argmin(axis=1), distances.min(axis=1)) for _, distances in _distances(x, y)]
    indices, distances = zip(*parts)
    return np.concatenate(indices), np.concatenate(distances)


def copied_share(
    generated: np.ndarray, held_out: np.ndarray, train: np.ndarray, quantile: float = 0.05
) -> float:
    """Share of generated clips that are nearer to a training clip than all but `quantile` of the
    held-out clips are.

    About `quantile` for a model whose clips are new draws of the distribution, as held-out clips
    are; near 1 for a model that repeats its training clips.

    Args:
        generated, held_out, train: features [n, D]; the model was trained on the clips of `train`.
    """
    threshold = np.quantile(nearest(held_out, train)[1], quantile)
    return float((nearest(generated, train)[1] < threshold).mean())


def _radii(samples: np.ndarray, k: int) -> np.ndarray:
    """Distance [N] of each row of samples [N, D] to the k-th nearest of the others."""
    return np.concatenate(
        [np.partition(distances, k, axis=1)[:, k] for _, distances in _distances(samples, samples)]
    )


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (rows, distances [b, M]) for blocks of rows of x [N, D] to all of y [M, D]."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    centre = y.mean(axis=0)  # the product form loses digits where all features are far from zero
    x, y = x - centre, y - centre
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        squared = (
            np.square(x[rows]).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * x[rows] @ y.T
        )
        yield rows, np.sqrt(squared.clip(0))
