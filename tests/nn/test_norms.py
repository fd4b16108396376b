"""The three norms against NumPy, and the stored statistics of BatchNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.nn.norms import NORMS, BatchNorm

X = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 4, 5, 24)).astype(np.float32)


def normalised(x, axes, epsilon):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def test_group_norm_takes_moments_over_groups_of_channels_of_one_sample():
    norm = NORMS["group"](24, dtype=jnp.float32, rngs=nnx.Rngs(0))
    grouped = X.reshape(2, 3, 4, 5, 24, 1)  # 24 is the largest number up to 32 that divides 24
    expected = normalised(grouped, (1, 2, 3, 5), 1e-6).reshape(X.shape)
    np.testing.assert_allclose(norm(X), expected, atol=1e-5)


def test_layer_norm_takes_moments_over_the_channels_of_one_position():
    norm = NORMS["layer"](24, dtype=jnp.float32, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(X), normalised(X, (-1,), 1e-6), atol=1e-5)


def test_batch_norm_in_training_uses_the_batch_and_stores_its_unbiased_variance():
    norm = BatchNorm(24)
    norm.train()
    np.testing.assert_allclose(norm(X), normalised(X, (0, 1, 2, 3), 1e-5), atol=1e-5)
    flat = X.reshape(-1, 24)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_batch_norm_after_training_uses_what_is_stored_and_moves_nothing():
    norm = BatchNorm(24)
    norm.mean[...], norm.variance[...] = jnp.full((24,), 2.0), jnp.full((24,), 9.0)
    np.testing.assert_allclose(norm(X), (X - 2) / np.sqrt(9 + 1e-5), atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], 2)


@pytest.mark.parametrize("kind", NORMS)
def test_the_normalisation_of_a_batch_runs_inside_a_checkpoint(kind):
    norm = NORMS[kind](24, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.train()
    np.testing.assert_allclose(jax.checkpoint(norm.for_batch(X))(X), norm(X), atol=1e-5)
