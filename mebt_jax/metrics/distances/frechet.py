"""Frechet distance between two sets of features: the distance behind FVD. NumPy, float64.

Its value depends on the number of samples (the bias falls as 1/N), so values compare at the same N
only, and against the distance of two real sets of that size; metrics/uncertainty.py gives both.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and scatter of N rows: all that a Frechet distance needs of a set of any size."""

    count: int
    mean: np.ndarray  # [D] float64
    # [D, D] float64: sum over the rows of the outer product of their deviation from the mean.
    scatter: np.ndarray

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union of both sets (Chan, Golub and LeVeque 1979): no large sums are ever
        subtracted.
        """
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = (
            self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        )
        return Moments(count, self.mean + step * (other.count / count), scatter)


def moments(batches: Iterable[np.ndarray]) -> Moments:
    """Moments of features [n, D] that arrive in batches, holding one batch in memory.

    Raises:
        ValueError: there are no rows.
    """
    total = None
    for batch in batches:
        rows = np.asarray(batch, np.float64)
        if not len(rows):
            continue
        mean = rows.mean(axis=0)
        part = Moments(len(rows), mean, (rows - mean).T @ (rows - mean))
        total = part if total is None else total.merge(part)
    if total is None:
        raise ValueError("the moments of no samples are not defined")
    return total


def frechet_distance(
    x: np.ndarray | Moments, y: np.ndarray | Moments, unbiased: bool = True
) -> float:
    """|mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of Gaussians fitted to x [N, D] and y
    [M, D].

    Covariances are over N - 1, as in the official program (mebt/fvd/fvd.py), or over N (StyleGAN-V)
    if not `unbiased`; at least two rows each.
    """
    (mean_x, root_x), (mean_y, root_y) = _mean_and_root(x, unbiased), _mean_and_root(y, unbiased)
    # With C_x = A A' and C_y = B B', the eigenvalues of C_x C_y are the squared singular values of
    # A' B. So no square root of a nearly singular matrix is taken, by which the usual form loses
    # digits or becomes complex.
    trace_of_root = np.linalg.svd(root_x.T @ root_y, compute_uv=False).sum()
    distance = np.square(mean_x - mean_y).sum() + np.square(root_x).sum() + np.square(root_y).sum()
    return float(max(distance - 2 * trace_of_root, 0.0))


def _mean_and_root(samples: np.ndarray | Moments, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
    """([D], A [D, min(N, D)] with A A' the covariance)."""
    count = samples.count if isinstance(samples, Moments) else len(samples)
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, but got {count}")
    scale = np.sqrt(count - unbiased)
    if not isinstance(samples, Moments):
        rows = np.asarray(samples, np.float64)
        if rows.shape[0] <= rows.shape[1]:
            # No more rows than features: the centred rows are a root, exact and cheap.
            mean = rows.mean(axis=0)
            return mean, (rows - mean).T / scale
        samples = moments([rows])
    values, directions = np.linalg.eigh(samples.scatter)
    return samples.mean, directions * (np.sqrt(values.clip(0)) / scale)
