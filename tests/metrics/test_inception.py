"""The Inception Score against scipy (vectors/sets.npz), and on classes whose score is known."""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.metrics.distances.inception import inception_score

SETS = np.load(Path(__file__).parent / "vectors" / "sets.npz")


def test_equals_scipy():
    expected = float(SETS["inception_mean"]), float(SETS["inception_std"])
    assert inception_score(SETS["fake"], splits=3) == pytest.approx(expected)


def test_score_of_sure_and_even_classes_is_their_number():
    sure = 50.0 * np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure)[0] == pytest.approx(7.0)
    assert inception_score(np.zeros((70, 7)))[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="80 splits"):
        inception_score(sure, splits=80)
