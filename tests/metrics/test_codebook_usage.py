"""Code statistics on distributions whose values are known."""

import numpy as np
import pytest

from mebt_jax.metrics.distances import codebook_usage


def test_even_use_of_half_the_tokens():
    counts = codebook_usage.count_tokens(np.array([[0, 2], [4, 6]]), 8)
    assert codebook_usage.usage(counts) == 0.5
    assert codebook_usage.perplexity(counts) == pytest.approx(4.0)
    assert codebook_usage.entropy(counts) == pytest.approx(np.log(4))


def test_cross_entropy_is_least_under_the_own_counts_and_always_finite():
    rng = np.random.default_rng(0)
    counts, other = rng.integers(1, 10_000, 32), rng.integers(1, 10_000, 32)
    assert codebook_usage.cross_entropy(counts, counts) == pytest.approx(
        codebook_usage.entropy(counts), rel=1e-3
    )
    assert codebook_usage.cross_entropy(counts, other) > codebook_usage.entropy(counts)
    assert np.isfinite(codebook_usage.cross_entropy(np.array([0, 5]), np.array([5, 0])))
