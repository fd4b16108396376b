"""What holds for every quantizer, and the helpers that they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quantizer_configs import CONFIGS

from mebt_jax.tokenizer.quantizers import QUANTIZERS
from mebt_jax.tokenizer.quantizers.quantizer import random_rows, token_metrics


def test_every_quantizer_is_tested_here():
    assert set(CONFIGS) == set(QUANTIZERS)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_token_means_its_embedding_and_passes_gradients_on(kind):
    config = CONFIGS[kind]
    quantizer = QUANTIZERS[kind](config, rngs=nnx.Rngs(0))
    codebook = np.asarray(quantizer.codebook[...])
    assert codebook.shape == (config.codebook_size, config.code_width)
    assert len(np.unique(codebook, axis=0)) == config.codebook_size
    features = 2 * jax.random.normal(jax.random.key(2), (4, 16, config.code_width))

    @jax.jit
    def run(features):
        return (
            quantizer(features),
            jax.grad(lambda f: quantizer(f).quantized.sum())(features),
            jax.grad(lambda f: quantizer(f).quantizer_loss)(features),
        )

    output, through, pull = run(features)
    np.testing.assert_allclose(output.quantized, codebook[output.tokens], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(output.tokens, quantizer.tokenize(features))
    assert np.all(np.asarray(through) > 0) and bool(jnp.any(pull != 0)) == (kind != "fsq")
    assert {"commitment", "perplexity", "usage", "dead"} <= set(output.metrics)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_tokens_that_were_used_are_not_dead(kind):
    config = CONFIGS[kind]
    quantizer = QUANTIZERS[kind](config, rngs=nnx.Rngs(0))
    assert float(quantizer.dead_share()) == 1
    features = jax.random.normal(jax.random.key(2), (64, config.code_width))
    tokens = quantizer.tokenize(features)
    quantizer.update(features, tokens, jax.random.key(3))
    used = len(np.unique(tokens)) / config.codebook_size
    assert 0 < used < 1 and float(quantizer.dead_share()) == pytest.approx(1 - used)


def test_too_few_features_are_repeated_with_noise():
    features = jax.random.normal(jax.random.key(2), (7, 6))
    rows = np.asarray(random_rows(features, 20, jax.random.key(4)))
    assert len(np.unique(rows, axis=0)) == 20
    distances = np.linalg.norm(rows[:, None] - np.asarray(features), axis=-1)
    assert distances.min(1).max() < 0.05
    assert np.bincount(distances.argmin(1), minlength=7).min() >= 2


def test_token_metrics():
    metrics = token_metrics(jnp.array([[0, 0], [3, 3]]), 8)
    assert float(metrics["perplexity"]) == pytest.approx(2, rel=1e-5)
    assert float(metrics["usage"]) == pytest.approx(0.25)
