"""Distances between feature sets against the official program, scipy and scikit-learn, and what
must hold for any set.

vectors/metrics.npz is of the official program; vectors/sets.npz of scipy 1.17 and scikit-learn 1.9
on two sets of six features.
"""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.metrics.distances import kernel_distance, neighbours
from mebt_jax.metrics.distances.frechet import frechet_distance, moments
from mebt_jax.metrics.distances.inception import inception_score
from mebt_jax.metrics.distances.kernel_distance import polynomial_mmd

FOLDER = Path(__file__).parent / "vectors"
VECTORS = np.load(FOLDER / "metrics.npz")
X, Y = VECTORS["x"], VECTORS["y"]
SETS = np.load(FOLDER / "sets.npz")
REAL, FAKE = SETS["real"], SETS["fake"]


def test_equal_the_official_program():
    assert frechet_distance(X, Y) == pytest.approx(float(VECTORS["frechet"]), rel=1e-5)
    assert polynomial_mmd(X, Y) == pytest.approx(float(VECTORS["polynomial_mmd"]), rel=1e-5)


def test_equal_scipy_and_scikit_learn(monkeypatch):
    assert frechet_distance(REAL, FAKE) == pytest.approx(float(SETS["frechet_unbiased"]), rel=1e-9)
    assert frechet_distance(REAL, FAKE, unbiased=False) == pytest.approx(
        float(SETS["frechet_biased"]), rel=1e-9
    )
    for block in (1024, 7):  # in one piece and in many
        monkeypatch.setattr(kernel_distance, "BLOCK", block)
        monkeypatch.setattr(neighbours, "BLOCK", block)
        assert polynomial_mmd(REAL, FAKE) == pytest.approx(float(SETS["polynomial_mmd"]), rel=1e-9)
        measured = neighbours.manifold(REAL, FAKE)
        for name in ("precision", "recall", "density", "coverage"):
            assert getattr(measured, name) == pytest.approx(float(SETS[name])), name
    assert inception_score(FAKE, splits=3) == pytest.approx(
        (float(SETS["inception_mean"]), float(SETS["inception_std"]))
    )


def test_frechet_of_a_set_with_itself_and_of_a_shift():
    assert frechet_distance(X, X) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(X, X + 2.0) == pytest.approx(4.0 * X.shape[1])
    assert frechet_distance(X, Y) == pytest.approx(frechet_distance(Y, X))


def test_frechet_holds_with_fewer_samples_than_dimensions():
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


@pytest.mark.parametrize("distance", [frechet_distance, polynomial_mmd])
def test_one_sample_is_refused(distance):
    with pytest.raises(ValueError, match="at least 2"):
        distance(X[:1], Y)


def test_inception_score_of_sure_and_even_classes_is_their_number():
    sure = 50.0 * np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure)[0] == pytest.approx(7.0)
    assert inception_score(np.zeros((70, 7)))[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="80 splits"):
        inception_score(sure, splits=80)


def test_perfect_clips_score_as_they_should_and_a_collapsed_model_loses_variety():
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((2, 400, 3))
    perfect = neighbours.manifold(real, fake)
    assert (
        perfect.density == pytest.approx(1.0, abs=0.1)
        and min(perfect.precision, perfect.recall, perfect.coverage) > 0.9
    )
    collapsed = neighbours.manifold(real, 0.01 * fake)
    assert collapsed.precision == 1.0 and max(collapsed.recall, collapsed.coverage) < 0.1
    with pytest.raises(ValueError, match="5-th neighbour"):
        neighbours.manifold(real[:5], fake)


def test_copies_of_training_clips_are_noticed():
    rng = np.random.default_rng(0)
    train, held_out, fresh = rng.standard_normal((3, 500, 6))
    assert neighbours.copied_share(fresh, held_out, train) == pytest.approx(0.05, abs=0.03)
    copied = train[:100] + 1e-3 * rng.standard_normal((100, 6))
    assert neighbours.copied_share(copied, held_out, train) == 1.0
    indices, distances = neighbours.nearest(copied, train)
    np.testing.assert_array_equal(indices, np.arange(100))
    np.testing.assert_allclose(distances, np.linalg.norm(copied - train[:100], axis=1), rtol=1e-6)
