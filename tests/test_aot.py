"""The ahead-of-time report: what it counts."""

import jax
import jax.numpy as jnp

from mebt_jax.aot import matrix_flops


def test_every_turn_of_a_scan_is_counted():
    def layers(x, weights):  # [4, 8], [3, 8, 8]
        return jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), x, weights)[0]

    traced = jax.jit(layers).trace(jnp.zeros((4, 8)), jnp.zeros((3, 8, 8)))
    assert matrix_flops(traced.jaxpr.jaxpr) == 3 * 2 * 4 * 8 * 8
