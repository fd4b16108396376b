"""Filters against vectors of the official program, and the draw against the distribution it should have."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.errors import UserError
from mebt_jax.sampling import logits

VECTORS = np.load(Path(__file__).parent / "vectors" / "schedules.npz")


@pytest.mark.parametrize("p", [0.3, 0.8, 0.95])
def test_top_p_equals_the_official_program(p):
    ours = logits.top_p_probabilities(jnp.asarray(VECTORS["top_p/probs"]), p)
    np.testing.assert_allclose(ours, VECTORS[f"top_p/{p}"], rtol=1e-5, atol=1e-7)


def test_top_p_keeps_the_code_that_crosses_p():
    # 0.5 already reaches p = 0.5, so the next code goes; at p = 0.6 it is needed and stays.
    probabilities = jnp.array([0.125, 0.5, 0.25, 0.125])
    np.testing.assert_allclose(logits.top_p_probabilities(probabilities, 0.5), [0, 1, 0, 0])
    np.testing.assert_allclose(logits.top_p_probabilities(probabilities, 0.6), [0, 2 / 3, 1 / 3, 0], rtol=1e-6)


def test_top_k_keeps_ties_with_the_last():
    kept = jnp.isfinite(logits.top_k_logits(jnp.array([1.0, 3.0, 2.0, 2.0]), 2))
    assert kept.tolist() == [False, True, True, True]


def test_filters_come_in_the_official_order():
    # Top-k before top-p: after keeping two codes of 0.4 and 0.4 each has 0.5, which reaches p = 0.45 alone.
    values = jnp.log(jnp.array([0.4, 0.4, 0.1, 0.1]))
    log_probabilities = logits.filtered_log_probabilities(values, 1.0, top_k=2, top_p=0.45)
    np.testing.assert_allclose(jnp.exp(log_probabilities), [1, 0, 0, 0], atol=1e-6)


def test_temperature_zero_takes_the_most_probable_code():
    values = jax.random.normal(jax.random.key(0), (1, 5, 11))
    keys = jax.random.split(jax.random.key(1), (1, 5))
    codes, _ = logits.draw(keys, logits.filtered_log_probabilities(values, 0.0, top_k=0, top_p=1.0))
    np.testing.assert_array_equal(codes, values.argmax(-1))


def test_draw_follows_the_filtered_distribution():
    probabilities = jnp.array([0.05, 0.4, 0.3, 0.2, 0.05])
    log_probabilities = logits.filtered_log_probabilities(jnp.log(probabilities), 1.0, top_k=3, top_p=1.0)
    keys = jax.random.split(jax.random.key(0), (1, 4_000))
    codes, drawn = logits.draw(keys, jnp.broadcast_to(log_probabilities, (1, 4_000, 5)))
    share = np.bincount(np.asarray(codes[0]), minlength=5) / 4_000
    np.testing.assert_allclose(share, [0, 4 / 9, 3 / 9, 2 / 9, 0], atol=0.03)
    np.testing.assert_allclose(drawn[0], log_probabilities[codes[0]])


@pytest.mark.parametrize("filters, field", [({"top_k": 12, "top_p": 1.0}, "top_k"), ({"top_k": -1, "top_p": 1.0}, "top_k"),
                                            ({"top_k": 0, "top_p": 0.0}, "top_p")])
def test_impossible_filters_name_their_field(filters, field):
    with pytest.raises(UserError, match=f"config.sample.{field}"):
        logits.filtered_log_probabilities(jnp.zeros((1, 11)), 1.0, **filters)
