"""The running averages of the codebook against a plain NumPy reference."""

import dataclasses

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quantizer_configs import EMA

from mebt_jax.tokenizer.quantizers.ema_quantizer import EMAQuantizer


def quantizer_and_features(shape, restart_threshold):
    config = dataclasses.replace(EMA, restart_threshold=restart_threshold)
    quantizer = EMAQuantizer(config, rngs=nnx.Rngs(0))
    quantizer.counts[...] = jax.random.uniform(jax.random.key(1), (20,), maxval=4.0)
    return quantizer, jax.random.normal(jax.random.key(2), (*shape, 6))


def updated(quantizer, features, tokens):
    """State after one update, under jit."""
    graphdef, state = nnx.split(quantizer)

    @jax.jit
    def update(state, features, tokens):
        quantizer = nnx.merge(graphdef, state)
        quantizer.update(features, tokens, jax.random.key(3))
        return nnx.state(quantizer)

    return update(state, features, tokens)


def test_update_equals_a_numpy_reference_and_restarts_the_rare_tokens():
    quantizer, features = quantizer_and_features((2, 4, 4, 4), restart_threshold=2.0)
    tokens = quantizer.tokenize(features)
    new = jax.tree.map(np.asarray, nnx.to_pure_dict(updated(quantizer, features, tokens)))

    flat, one_hot = np.asarray(features).reshape(-1, 6), np.eye(20)[np.asarray(tokens).ravel()]
    counts = 0.9 * np.asarray(quantizer.counts[...]) + 0.1 * one_hot.sum(0)
    sums = 0.9 * np.asarray(quantizer.sums[...]) + 0.1 * one_hot.T @ flat
    smoothed = (counts + 1e-7) / (counts.sum() + 20e-7) * counts.sum()
    np.testing.assert_allclose(new["counts"], counts, rtol=1e-5)
    np.testing.assert_allclose(new["sums"], sums, rtol=1e-4, atol=1e-5)

    rare = counts < 2.0
    assert 0 < rare.sum() < 20
    np.testing.assert_allclose(
        new["codebook"][~rare], (sums / smoothed[:, None])[~rare], rtol=1e-4, atol=1e-5
    )
    restarted = {tuple(row) for row in new["codebook"][rare]}
    assert len(restarted) == rare.sum() and restarted <= {tuple(row) for row in flat}


def test_update_of_a_batch_split_over_devices_is_that_of_the_whole():
    quantizer, features = quantizer_and_features((8, 2, 3, 3), restart_threshold=1.0)
    tokens = quantizer.tokenize(features)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put((features, tokens), NamedSharding(mesh, PartitionSpec("data")))
    jax.tree.map(
        lambda whole, parts: np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6),
        updated(quantizer, features, tokens),
        updated(quantizer, *split),
    )


def test_commitment_pulls_features_towards_their_embeddings():
    quantizer, features = quantizer_and_features((64,), restart_threshold=1.0)
    pull = jax.jit(jax.grad(lambda f: quantizer(f).quantizer_loss))(features)
    embeddings = quantizer.lookup(quantizer.tokenize(features))
    np.testing.assert_allclose(
        pull, 0.25 * 2 * (features - embeddings) / features.size, rtol=1e-5, atol=1e-8
    )


def test_a_set_codebook_is_the_mean_of_its_sums():
    quantizer, _ = quantizer_and_features((1,), restart_threshold=1.0)
    codebook = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    quantizer.set_codebook(codebook, np.arange(20, dtype=np.float32))
    np.testing.assert_array_equal(quantizer.codebook[...], codebook)
    np.testing.assert_allclose(quantizer.sums[...], codebook * np.arange(20)[:, None], rtol=1e-6)
