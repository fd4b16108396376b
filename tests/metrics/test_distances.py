"""Frechet and kernel distances against vectors of the official program, and what must hold for any set."""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.metrics.frechet import frechet_distance
from mebt_jax.metrics.kernel import polynomial_mmd

VECTORS = np.load(Path(__file__).parent / "vectors" / "metrics.npz")
X, Y = VECTORS["x"], VECTORS["y"]


def test_equal_the_official_program():
    assert frechet_distance(X, Y) == pytest.approx(float(VECTORS["frechet"]), rel=1e-5)
    assert polynomial_mmd(X, Y) == pytest.approx(float(VECTORS["polynomial_mmd"]), rel=1e-5)


def test_frechet_of_a_set_with_itself_and_of_a_shift():
    assert frechet_distance(X, X) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(X, X + 2.0) == pytest.approx(4.0 * X.shape[1])
    assert frechet_distance(X, Y) == pytest.approx(frechet_distance(Y, X))


def test_frechet_holds_with_fewer_samples_than_dimensions():
    rng = np.random.default_rng(0)
    few, many = rng.standard_normal((5, 40)), rng.standard_normal((7, 40))
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    assert frechet_distance(few, many) == pytest.approx(frechet_distance(few @ rotation, many @ rotation))


@pytest.mark.parametrize("distance", [frechet_distance, polynomial_mmd])
def test_one_sample_is_refused(distance):
    with pytest.raises(ValueError, match="at least 2"):
        distance(X[:1], Y)
