"""Frechet distance between two sets of features: the distance behind FVD. NumPy, float64.

Its value depends on the number of samples (the bias falls as 1/N), so it is only comparable at the same N, and should be
read against the distance of two real sets of that size.
"""

import numpy as np


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of Gaussians fitted to x [N, D] and y [M, D].

    Covariances are unbiased (1 / (N - 1)), as in the official program (mebt/fvd/fvd.py); at least two rows each.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, but got {len(x)} and {len(y)}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    root_x, root_y = _factor(x), _factor(y)
    # With C_x = A A' and C_y = B B', the eigenvalues of C_x C_y are the squared singular values of A' B: no square root of
    # a nearly singular matrix is ever taken, which is where the usual form loses digits or turns complex.
    trace_of_root = np.linalg.svd(root_x.T @ root_y, compute_uv=False).sum()
    distance = np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + np.square(root_x).sum() + np.square(root_y).sum()
    return float(max(distance - 2 * trace_of_root, 0.0))


def _factor(samples: np.ndarray) -> np.ndarray:
    """A [D, min(N, D)] with A A' the covariance of samples [N, D]."""
    _, values, directions = np.linalg.svd(samples - samples.mean(axis=0), full_matrices=False)
    return directions.T * (values / np.sqrt(len(samples) - 1))
