"""Interval-length curriculum: equation 4 by simulation, the official form by its stored numbers."""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.errors import UserError
from mebt_jax.methods.masked.intervals import (
    INTERVAL_SCHEDULES,
    draw_interval,
    interval_probabilities,
)


def test_renormalized_equals_the_official_probabilities():
    with np.load(Path(__file__).parent / "vectors" / "schedules.npz") as file:
        stored = {name: file[name] for name in file if name.startswith("interval/")}
    assert stored
    for name, expected in stored.items():
        frames, step, alpha = map(int, name.split("/")[1:])
        ours = interval_probabilities("gaussian_renormalized", frames, step, alpha, 2.0)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("step", [0, 400_000, 1_000_000, 5_000_000])
def test_clip_is_equation_4(step):
    frames, alpha, beta = 8, 100_000.0, 2.0
    v_hat = np.random.default_rng(step).normal(step / alpha + 1, beta, size=400_000)
    v = np.minimum(np.maximum(1, np.ceil(v_hat)), frames).astype(int)
    frequencies = np.bincount(v, minlength=frames + 1)[1:] / v.size
    np.testing.assert_allclose(
        interval_probabilities("gaussian_clipped", frames, step, alpha, beta),
        frequencies,
        atol=4e-3,
    )


@pytest.mark.parametrize("schedule", INTERVAL_SCHEDULES)
@pytest.mark.parametrize("frames", [1, 4, 32])
@pytest.mark.parametrize("step", [0, 10**6, 10**9])
def test_probabilities_at_any_step(schedule, frames, step):
    probabilities = interval_probabilities(schedule, frames, step, 30_000.0, 2.0)
    assert probabilities.shape == (frames,) and np.all(probabilities >= 0)
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-12)


def test_uniform_and_longest():
    np.testing.assert_array_equal(interval_probabilities("uniform", 4, 7, 1.0, 1.0), [0.25] * 4)
    np.testing.assert_array_equal(interval_probabilities("longest", 4, 7, 1.0, 1.0), [0, 0, 0, 1])


def test_draws_follow_the_probabilities():
    rng = np.random.default_rng(0)
    probabilities = np.array([0.2, 0.0, 0.7, 0.1])
    draws = [draw_interval(rng, probabilities) for _ in range(4000)]
    frequencies = np.bincount(draws, minlength=5)[1:] / len(draws)
    # Four standard errors; a length without probability is never drawn.
    error = 4 * np.sqrt(probabilities * (1 - probabilities) / len(draws))
    assert (np.abs(frequencies - probabilities) <= error).all()


def test_alpha_zero_is_refused():
    with pytest.raises(UserError, match="interval_alpha"):
        interval_probabilities("gaussian_clipped", 4, 0, 0.0, 2.0)
