"""Noise, floor and limit of a distance, against what many independent draws of a known distribution
show.
"""

import numpy as np
import pytest

from mebt_jax.metrics import uncertainty
from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.distances.kernel_distance import polynomial_mmd

SCALES = np.arange(1, 17) ** -0.7  # a spectrum that falls off, as features of videos have
SHIFT = 0.15
TRUTH = 16 * SHIFT**2  # Frechet distance of the two distributions themselves


def draw(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)) * SCALES + shift


def test_standard_error_is_the_spread_of_independent_measurements():
    estimates = [
        uncertainty.distance(frechet_distance, draw(128, 2 * k, SHIFT), draw(128, 2 * k + 1))
        for k in range(60)
    ]
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(
        np.std([e.value for e in estimates]), rel=0.3
    )


def test_extrapolation_takes_the_bias_away():
    estimates = [
        uncertainty.distance(frechet_distance, draw(64, 2 * k, SHIFT), draw(64, 2 * k + 1))
        for k in range(100)
    ]
    bias = np.mean([e.value for e in estimates]) - TRUTH
    left = np.mean([e.at_infinity for e in estimates]) - TRUTH
    assert bias > 0.4 * TRUTH and abs(left) < 0.2 * bias


def test_floor_is_that_of_perfect_clips_measured_or_carried_over():
    perfect = np.mean([frechet_distance(draw(128, 2 * k), draw(128, 2 * k + 1)) for k in range(40)])
    fake, real = draw(128, 0, SHIFT), draw(256, 1)
    with_other = uncertainty.distance(frechet_distance, fake, real[:128], other_real=real[128:])
    spare = uncertainty.distance(frechet_distance, fake, real, count=128)
    assert with_other == spare and with_other.real_floor_count == 128
    assert with_other.real_floor == pytest.approx(perfect, rel=0.5)
    carried, count = zip(
        *(
            uncertainty.real_floor(frechet_distance, draw(128, k), fake[:0], biased=True)
            for k in range(40)
        )
    )
    assert set(count) == {64} and np.mean(carried) == pytest.approx(perfect, rel=0.2)


def test_repeats_are_disjoint_sets_and_their_mean_is_reported():
    fake, real = draw(300, 0, SHIFT), draw(100, 1)
    estimate = uncertainty.distance(frechet_distance, fake, real, repeats=5)
    values = [frechet_distance(fake[k : k + 100], real) for k in (0, 100, 200)]
    assert estimate.repeats == 3 and estimate.count == 100
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.standard_error == pytest.approx(np.std(values, ddof=1) / 3**0.5)


def test_an_unbiased_measure_is_its_own_limit_and_its_floor_is_about_zero():
    estimate = uncertainty.distance(
        polynomial_mmd, draw(100, 0, SHIFT), draw(200, 1), count=100, biased=False
    )
    assert (
        estimate.at_infinity == estimate.value and abs(estimate.real_floor) < 0.1 * estimate.value
    )


def test_from_samples_takes_the_same_rows_of_all_and_the_bias_away():
    def plug_in_variance(x, y):  # of the difference, over N: N / (N - 1) too small
        return np.var(x - y)

    x = [np.random.default_rng(k).standard_normal(20) for k in range(300)]
    # x and y are of the same samples.
    estimates = [uncertainty.from_samples(plug_in_variance, 2 * row, row) for row in x]
    assert np.mean([e.value for e in estimates]) == pytest.approx(0.95, abs=0.03)
    assert np.mean([e.at_infinity for e in estimates]) == pytest.approx(1.0, abs=0.03)
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(
        np.std([e.value for e in estimates]), rel=0.3
    )
    unbiased, unknown = (
        uncertainty.from_samples(np.mean, x[0], biased=biased) for biased in (False, None)
    )
    assert (
        unbiased.at_infinity == unbiased.value == pytest.approx(x[0].mean())
        and unknown.at_infinity is None
    )


def test_too_few_samples_are_refused_and_never_repeated():
    with pytest.raises(
        ValueError, match="64 samples a side are needed, but there are 40 generated and 100 real"
    ):
        uncertainty.distance(frechet_distance, draw(40, 0), draw(100, 1), count=64)
    tiny = uncertainty.distance(frechet_distance, draw(2, 0), draw(2, 1))
    assert tiny.standard_error is None and tiny.at_infinity is None and tiny.real_floor is None
