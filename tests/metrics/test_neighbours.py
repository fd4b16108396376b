"""Nearest neighbours against scikit-learn (vectors/sets.npz) and on sets of known values."""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.metrics.distances import neighbours

SETS = np.load(Path(__file__).parent / "vectors" / "sets.npz")


@pytest.mark.parametrize("block", [1024, 7])  # all rows at once, and in many blocks
def test_equal_scikit_learn(block, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    measured = neighbours.manifold(SETS["real"], SETS["fake"])
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(measured, name) == pytest.approx(float(SETS[name])), name


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
