"""The estimate of live memory against programs whose need is known."""

import jax
import jax.numpy as jnp
import pytest

from mebt_jax.runtime.live_memory import peak_bytes

X = jax.ShapeDtypeStruct((64, 64), jnp.float32)
SIZE = 64 * 64 * 4


def peak(function, *arguments):
    return peak_bytes(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_arrays_live_from_their_equation_to_their_last_reader():
    assert peak(lambda x: x @ x, X) == SIZE
    # The second product reads the first; the third reads the second alone.
    assert peak(lambda x: ((x @ x) @ x) @ x, X) == 2 * SIZE
    # Both of the first two are alive when the third is computed.
    assert peak(lambda x: (x @ x) @ (x @ x.T), X) == pytest.approx(3 * SIZE, rel=0.34)


def test_elementwise_chains_are_not_stored():
    assert peak(lambda x: jnp.sin(jnp.tanh(x) + 1) @ x, X) == SIZE


def test_a_loop_needs_one_turn():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=100)[0]

    assert peak(loop, X) <= 3 * SIZE
