"""Properties of the perceptual distance; its numbers are tested against official vectors in
interop/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.tokenizer.training import lpips


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(lpips, "WIDTHS", (4,) * 5)
    return lpips.LPIPS(rngs=nnx.Rngs(0))


def test_the_distance_is_a_weighted_sum_of_one_term_for_each_stage(network):
    x, y = jax.random.uniform(jax.random.key(0), (2, 3, 32, 32, 3), minval=-1.0)
    graphdef, state = nnx.split(network)

    @jax.jit
    def distances(weights):
        """[rows, B] for rows of one weight per stage."""

        def distance(x, y, row):
            network = nnx.merge(graphdef, state, copy=True)
            for i, weight in enumerate(network.weights):
                weight[...] = jnp.broadcast_to(row[i], (4,))
            return network(x, y)

        return jax.vmap(lambda row: distance(x, y, row))(weights), distance(x, x, weights[-1])

    rows = np.vstack([np.eye(5), np.arange(1, 6)])
    found, of_equals = distances(jnp.asarray(rows, jnp.float32))
    assert float(found[:5].min()) > 0
    np.testing.assert_allclose(found[5], rows[5] @ np.asarray(found[:5]), rtol=1e-5)
    np.testing.assert_array_equal(of_equals, 0)


def test_features_that_are_all_zero_have_a_finite_gradient():
    gradient = jax.grad(lambda x: lpips.unit_length(x).sum())(jnp.zeros((1, 1, 1, 4)))
    assert np.isfinite(gradient).all()
