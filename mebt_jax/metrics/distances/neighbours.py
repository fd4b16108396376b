"""What nearest neighbours among features tell: precision, recall, density, coverage, and copies of
training clips.

NumPy, float64, Euclidean distances. Kynkaanniemi et al. 2019 (precision, recall); Naeem et al. 2020
(density, coverage).
"""

import dataclasses

import numpy as np

NEIGHBOURS = 5  # k of Naeem et al.
BLOCK = 1024  # rows of the [N, M] distances that exist at one time


@dataclasses.dataclass(frozen=True)
class Manifold:
    """Shares between 0 and 1, but density, whose value for perfect clips is 1 and which has no
    upper bound.
    """

    precision: float  # generated clips that lie within reach of some real clip: fidelity
    recall: float  # real clips that lie within reach of some generated clip: variety
    # real clips within whose reach a generated clip lies, over k: fidelity, robust to outliers
    density: float
    coverage: (
        float  # real clips that have a generated clip within reach: variety, robust to outliers
    )


def manifold(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS) -> Manifold:
    """The four measures for real [N, D] and generated [M, D]; the reach of a clip is its distance
    to its k-th neighbour.

    Raises:
        ValueError: a set has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"the {k}-th neighbour needs more than {k} samples, but got {len(real)} and "
            f"{len(generated)}"
        )
    reach_real, reach_generated = _reach(real, k), _reach(generated, k)  # [N], [M]
    inside_real = np.zeros(len(generated), np.int64)  # how many real clips reach each generated one
    recalled, covered = [], []
    for rows, distances in _distances(real, generated):
        within = distances < reach_real[rows, None]  # [b, M]
        inside_real += within.sum(axis=0)
        covered.append(within.any(axis=1))
        recalled.append((distances < reach_generated).any(axis=1))
    return Manifold(
        precision=float((inside_real > 0).mean()),
        recall=float(np.concatenate(recalled).mean()),
        density=float(inside_real.mean() / k),
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

    About `quantile` for a model that draws from the distribution as held-out clips do; near 1 for
    one that recites its training clips. All features [., D]; `train` must be clips that the model
    was trained on.
    """
    threshold = np.quantile(nearest(held_out, train)[1], quantile)
    return float((nearest(generated, train)[1] < threshold).mean())


def _reach(samples: np.ndarray, k: int) -> np.ndarray:
    """Distance [N] of each row of samples [N, D] to the k-th nearest of the others."""
    return np.concatenate(
        [np.partition(distances, k, axis=1)[:, k] for _, distances in _distances(samples, samples)]
    )


def _distances(x: np.ndarray, y: np.ndarray):
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
