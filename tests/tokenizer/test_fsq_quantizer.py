"""Rounding to levels against a search in the table."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from quantizer_configs import CONFIGS

from mebt_jax.tokenizer.quantizers.fsq_quantizer import FSQQuantizer, squash


def test_squashed_features_go_to_the_nearest_level_and_reach_every_token():
    config = CONFIGS["fsq"]
    quantizer = FSQQuantizer(config, rngs=nnx.Rngs(0))
    codebook = np.asarray(quantizer.codebook[...])
    assert [len(np.unique(column)) for column in codebook.T] == [4, 5, 3]
    features = jnp.asarray(np.random.default_rng(0).uniform(-4, 4, (20_000, 3)), jnp.float32)
    tokens = np.asarray(quantizer.tokenize(features))
    assert len(np.unique(tokens)) == 60
    distances = np.square(np.asarray(quantizer.bound(features))[:, None] - codebook).sum(-1)
    np.testing.assert_allclose(
        distances[np.arange(len(tokens)), tokens], distances.min(1), atol=1e-6
    )


def test_zero_stays_zero():
    np.testing.assert_allclose(squash(jnp.zeros((1, 3)), (4, 5, 3)), 0, atol=1e-6)
