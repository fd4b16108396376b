"""Orders of committing tokens: permutations, evenly spread where they say so."""

import jax
import numpy as np
import pytest

from mebt_jax.methods.masked.orders import ORDERS, halton_ranks

GRID = (4, 3, 5)
NUM_TOKENS = 60


@pytest.mark.parametrize("name", ORDERS)
def test_every_clip_gets_a_permutation(name):
    keys = jax.random.split(jax.random.key(0), 3)
    random_ranks = np.stack([np.random.default_rng(i).permutation(NUM_TOKENS) for i in range(3)])
    ranks = np.asarray(ORDERS[name].ranks(keys, random_ranks, GRID))
    np.testing.assert_array_equal(np.sort(ranks, axis=1), [np.arange(NUM_TOKENS)] * 3)


def test_halton_visits_every_cell_once_and_spreads_its_first_part():
    ranks = halton_ranks((8, 8, 8))
    np.testing.assert_array_equal(np.sort(ranks.ravel()), np.arange(512))
    # Of the first eighth, every octant of the grid has about an eighth; at random some have none.
    octants = (ranks < 64).reshape(2, 4, 2, 4, 2, 4).sum(axis=(1, 3, 5))
    assert octants.min() >= 6 and octants.max() <= 10


def test_halton_is_shifted_by_the_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    none = np.zeros((4, NUM_TOKENS), int)
    ranks = np.asarray(ORDERS["halton"].ranks(keys, none, GRID))
    again = np.asarray(ORDERS["halton"].ranks(keys[::-1], none, GRID))[::-1]
    np.testing.assert_array_equal(ranks, again)
    assert len(np.unique(ranks, axis=0)) > 1


def test_only_confidence_chooses_by_the_draw():
    assert [name for name, order in ORDERS.items() if order.by_confidence] == ["confidence"]
