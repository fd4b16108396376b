"""Kernel distance between two sets of features: the polynomial MMD behind KVD. NumPy, float64."""

import numpy as np

BLOCK = 1024  # rows of the kernel matrix [N, M] that are in memory at one time


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 of x [N, D] and y [M, D], diagonals
    removed.

    Note: mebt/fvd/fvd.py, with the defaults of scikit-learn's polynomial_kernel. It may be
    slightly negative for equal distributions.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"the unbiased MMD needs at least 2 samples, but got {len(x)} and {len(y)}"
        )
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(_mean_off_diagonal(x) + _mean_off_diagonal(y) - 2 * _sum(x, y) / (len(x) * len(y)))


def _sum(x: np.ndarray, y: np.ndarray) -> float:
    return sum(
        _cubed(x[start : start + BLOCK] @ y.T, x.shape[1]).sum()
        for start in range(0, len(x), BLOCK)
    )


def _mean_off_diagonal(x: np.ndarray) -> float:
    diagonal = _cubed(np.square(x).sum(axis=1), x.shape[1]).sum()
    return (_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _cubed(products: np.ndarray, dimensions: int) -> np.ndarray:
    return (products / dimensions + 1) ** 3
