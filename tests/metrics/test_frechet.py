"""Frechet distances against the official program and scipy, and what must hold for any set.

vectors/metrics.npz is of the official program; vectors/sets.npz of scipy 1.17 on two sets of six
features.
"""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.metrics.distances.frechet import frechet_distance, moments

FOLDER = Path(__file__).parent / "vectors"
VECTORS, SETS = np.load(FOLDER / "metrics.npz"), np.load(FOLDER / "sets.npz")
X, Y = VECTORS["x"], VECTORS["y"]


def test_equals_the_official_program_and_scipy():
    assert frechet_distance(X, Y) == pytest.approx(float(VECTORS["frechet"]), rel=1e-5)
    for unbiased, name in ((True, "frechet_unbiased"), (False, "frechet_biased")):
        distance = frechet_distance(SETS["real"], SETS["fake"], unbiased=unbiased)
        assert distance == pytest.approx(float(SETS[name]), rel=1e-9)


def test_distance_of_a_set_with_itself_and_of_a_shift():
    assert frechet_distance(X, X) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(X, X + 2.0) == pytest.approx(4.0 * X.shape[1])
    assert frechet_distance(X, Y) == pytest.approx(frechet_distance(Y, X))


def test_it_holds_with_fewer_samples_than_dimensions():
    rng = np.random.default_rng(0)
    few, many = rng.standard_normal((5, 40)), rng.standard_normal((7, 40))
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    assert frechet_distance(few, many) == pytest.approx(
        frechet_distance(few @ rotation, many @ rotation)
    )
    assert frechet_distance(few, many) == pytest.approx(
        frechet_distance(moments([few]), moments([many])), rel=1e-6
    )


def test_streamed_moments_are_those_of_the_whole_set_even_far_from_zero():
    rows = np.random.default_rng(0).standard_normal((1000, 8)) + 1e6
    batches = (rows[start : start + 37].astype(np.float64) for start in range(0, 1000, 37))
    streamed = moments(batches)
    assert streamed.count == 1000
    np.testing.assert_allclose(streamed.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(streamed.scatter / 999, np.cov(rows.T), rtol=1e-9, atol=1e-9)
    assert frechet_distance(streamed, rows) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="no samples"):
        moments([rows[:0]])


def test_constant_features_are_no_matrix_root_of_nan():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((600, 3)), np.ones((600, 300))], axis=1)
    x = x.astype(np.float32)
    assert frechet_distance(x[:300], x[300:]) < 0.1
    assert np.isfinite(frechet_distance(x, np.zeros_like(x)))


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(X[:1], Y)
