"""Code statistics on distributions whose values are known."""

import numpy as np
import pytest

from mebt_jax.metrics import codes


def test_even_use_of_half_the_codes():
    counts = codes.count_codes(np.array([[0, 2], [4, 6]]), 8)
    assert codes.usage(counts) == 0.5
    assert codes.perplexity(counts) == pytest.approx(4.0)
    assert codes.entropy(counts) == pytest.approx(np.log(4))


def test_cross_entropy_is_least_under_the_own_counts_and_always_finite():
    rng = np.random.default_rng(0)
    counts, other = rng.integers(1, 10_000, 32), rng.integers(1, 10_000, 32)
    assert codes.cross_entropy(counts, counts) == pytest.approx(codes.entropy(counts), rel=1e-3)
    assert codes.cross_entropy(counts, other) > codes.entropy(counts)
    assert np.isfinite(codes.cross_entropy(np.array([0, 5]), np.array([5, 0])))
