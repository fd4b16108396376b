"""Filters against vectors of the official program, and the draw against the distribution it should
have.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.errors import UserError
from mebt_jax.methods.masked import logit_filters

VECTORS = np.load(Path(__file__).parent / "vectors" / "sampling.npz")


@pytest.mark.parametrize("p", [0.3, 0.8, 0.95])
def test_top_p_equals_the_official_program(p):
    ours = logit_filters.top_p_probabilities(jnp.asarray(VECTORS["top_p/probs"]), p)
    np.testing.assert_allclose(ours, VECTORS[f"top_p/{p}"], rtol=1e-5, atol=1e-7)


def test_top_p_keeps_the_code_that_crosses_p():
    # 0.5 already reaches p = 0.5, so the next code goes; at p = 0.6 it is needed and stays.
    probabilities = jnp.array([0.125, 0.5, 0.25, 0.125])
    np.testing.assert_allclose(logit_filters.top_p_probabilities(probabilities, 0.5), [0, 1, 0, 0])
    np.testing.assert_allclose(
        logit_filters.top_p_probabilities(probabilities, 0.6), [0, 2 / 3, 1 / 3, 0], rtol=1e-6
    )


def test_largest_equals_a_search_over_all_codes():
    values = jnp.asarray(
        np.random.default_rng(0).integers(0, 500, (3, 2, 1000)), jnp.float32
    )  # with ties
    ours, codes = logit_filters.largest(values, 7)
    expected, expected_codes = jax.lax.top_k(values, 7)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(codes, expected_codes)


def test_filters_come_in_the_official_order():
    # Top-k before top-p: after keeping two codes of 0.4 and 0.4 each has 0.5, which reaches p =
    # 0.45 alone.
    values = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.4, 0.4, 0.1])), (1, 50, 4))
    codes, log_probabilities = logit_filters.draw_tokens(
        jax.random.split(jax.random.key(0), (1, 50)), values, 1.0, top_k=2, top_p=0.45
    )
    assert (codes == 1).all()
    np.testing.assert_allclose(log_probabilities, 0, atol=1e-6)


@pytest.mark.parametrize("top_k", [0, 5])
def test_temperature_zero_takes_the_most_probable_code(top_k):
    values = jax.random.normal(jax.random.key(0), (1, 5, 11))
    codes, _ = logit_filters.draw_tokens(
        jax.random.split(jax.random.key(1), (1, 5)), values, 0.0, top_k=top_k, top_p=1.0
    )
    np.testing.assert_array_equal(codes, values.argmax(-1))


@pytest.mark.parametrize("top_k", [0, 9])
def test_draw_follows_the_filtered_distribution(top_k):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(19))
    values = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32)), (1, 8_000, 19))
    codes, log_probabilities = logit_filters.draw_tokens(
        jax.random.split(jax.random.key(0), (1, 8_000)), values, 1.0, top_k=top_k, top_p=1.0
    )
    expected = np.where(probabilities >= np.sort(probabilities)[-top_k], probabilities, 0)
    expected /= expected.sum()
    np.testing.assert_allclose(np.bincount(codes[0], minlength=19) / 8_000, expected, atol=0.02)
    np.testing.assert_allclose(log_probabilities[0], np.log(expected[codes[0]]), atol=1e-5)


@pytest.mark.parametrize(
    "filters, field",
    [
        ({"top_k": 12, "top_p": 1.0}, "top_k"),
        ({"top_k": -1, "top_p": 1.0}, "top_k"),
        ({"top_k": 0, "top_p": 0.0}, "top_p"),
    ],
)
def test_impossible_filters_name_their_field(filters, field):
    with pytest.raises(UserError, match=f"config.decoding.{field}"):
        logit_filters.draw_tokens(
            jax.random.split(jax.random.key(0), (1, 1)), jnp.zeros((1, 1, 11)), 1.0, **filters
        )
