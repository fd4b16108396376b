"""Kernel distance between two sets of features: the polynomial MMD behind KVD. NumPy, float64."""

import numpy as np


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 of x [N, D] and y [M, D], diagonals removed.

    Note: mebt/fvd/fvd.py, with the defaults of scikit-learn's polynomial_kernel. May be slightly negative for equal
    distributions.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"the unbiased MMD needs at least 2 samples, but got {len(x)} and {len(y)}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(_mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    size = len(kernel)
    return (kernel.sum() - np.trace(kernel)) / (size * (size - 1))
