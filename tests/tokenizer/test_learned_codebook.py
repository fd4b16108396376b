"""The search for the nearest embedding, and a codebook that starts at features."""

import jax
import numpy as np
import pytest
from flax import nnx
from quantizer_configs import CONFIGS

from mebt_jax.tokenizer.quantizers import QUANTIZERS, learned_codebook


def features_of(shape):
    return jax.random.normal(jax.random.key(2), (*shape, 6))


@pytest.mark.parametrize("block", [7, 4096])
def test_every_feature_gets_its_nearest_token_whatever_the_block(block, monkeypatch):
    monkeypatch.setattr(learned_codebook, "CODEBOOK_BLOCK", block)
    codebook = jax.random.normal(jax.random.key(0), (20, 6))
    features = features_of((2, 4, 4, 4))
    distances = np.square(np.asarray(features)[..., None, :] - np.asarray(codebook)).sum(-1)
    tokens = jax.jit(learned_codebook.nearest_tokens)(codebook, features)
    np.testing.assert_array_equal(tokens, distances.argmin(-1))


def test_the_lowest_of_equal_embeddings_is_taken(monkeypatch):
    monkeypatch.setattr(learned_codebook, "CODEBOOK_BLOCK", 2)
    codebook = np.zeros((5, 6), np.float32)
    codebook[1] = codebook[3] = 1
    tokens = learned_codebook.nearest_tokens(codebook, np.ones((1, 6), np.float32))
    np.testing.assert_array_equal(tokens, [1])


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_a_codebook_starts_at_different_features(kind):
    quantizer, features = QUANTIZERS[kind](CONFIGS[kind], rngs=nnx.Rngs(0)), features_of((128,))
    quantizer.init_from_features(features, jax.random.key(4))
    rows = {tuple(row) for row in np.asarray(quantizer.codebook[...])}
    assert len(rows) == 20 and rows <= {tuple(row) for row in np.asarray(features)}
    np.testing.assert_array_equal(quantizer.counts[...], 1)
