"""Kernel distances against the official program and scikit-learn 1.9 (vectors/sets.npz)."""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.metrics.distances import kernel_distance
from mebt_jax.metrics.distances.kernel_distance import polynomial_mmd

FOLDER = Path(__file__).parent / "vectors"
VECTORS, SETS = np.load(FOLDER / "metrics.npz"), np.load(FOLDER / "sets.npz")


def test_equals_the_official_program():
    distance = polynomial_mmd(VECTORS["x"], VECTORS["y"])
    assert distance == pytest.approx(float(VECTORS["polynomial_mmd"]), rel=1e-5)


@pytest.mark.parametrize("block", [1024, 7])  # all rows at once, and in many blocks
def test_equals_scikit_learn(block, monkeypatch):
    monkeypatch.setattr(kernel_distance, "BLOCK", block)
    distance = polynomial_mmd(SETS["real"], SETS["fake"])
    assert distance == pytest.approx(float(SETS["polynomial_mmd"]), rel=1e-9)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        polynomial_mmd(VECTORS["x"][:1], VECTORS["y"])
