"""Signs as tokens, and the entropies by brute force over all tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quantizer_configs import CONFIGS

from mebt_jax.tokenizer.quantizers import lfq_quantizer


def entropy(probabilities):
    return -(probabilities * np.log(probabilities + 1e-300)).sum(-1)


def test_every_feature_goes_to_the_nearest_corner():
    quantizer = lfq_quantizer.LFQQuantizer(CONFIGS["lfq"], rngs=nnx.Rngs(0))
    features = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    distances = np.square(features[:, None] - np.asarray(quantizer.codebook[...])).sum(-1)
    np.testing.assert_array_equal(quantizer.tokenize(features), distances.argmin(1))


def test_entropies_of_signs_are_those_of_the_token_probabilities():
    quantizer = lfq_quantizer.LFQQuantizer(CONFIGS["lfq"], rngs=nnx.Rngs(0))
    codebook = np.asarray(quantizer.codebook[...], np.float64)
    features = np.random.default_rng(0).normal(size=(50, 5))
    logits = -np.square(features[:, None] - codebook).sum(-1) / lfq_quantizer.TEMPERATURE
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    per_token, of_tokens = lfq_quantizer.sign_entropies(jnp.asarray(features, jnp.float32))
    assert float(per_token) == pytest.approx(entropy(probabilities).mean(), rel=1e-4)
    assert float(of_tokens) == pytest.approx(entropy(probabilities.mean(0)), rel=1e-4)
