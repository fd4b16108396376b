"""Properties of the codebook, and its running averages against a plain numpy reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs import base
from mebt_jax import config as config_module
from mebt_jax.tokenizer import quantizers

CONFIG = dataclasses.replace(config_module.from_config_dict(base.get_config()).tokenizer, codes=20, code_width=6)


def codebook_and_features(shape=(2, 4, 4, 4), config=CONFIG):
    codebook = quantizers.init_codebook(config, jax.random.key(0))
    codebook = codebook.replace(counts=jax.random.uniform(jax.random.key(1), codebook.counts.shape, maxval=4.0))
    return codebook, jax.random.normal(jax.random.key(2), (*shape, config.code_width))


@pytest.mark.parametrize("block", [7, 4096])
def test_every_feature_gets_its_nearest_code_whatever_the_block(block, monkeypatch):
    monkeypatch.setattr(quantizers, "CODE_BLOCK", block)
    codebook, features = codebook_and_features()
    distances = np.square(np.asarray(features)[..., None, :] - np.asarray(codebook.embeddings)).sum(-1)
    quantized = jax.jit(quantizers.quantize)(codebook, features)
    np.testing.assert_array_equal(quantized.codes, distances.argmin(-1))
    np.testing.assert_allclose(quantized.embeddings, codebook.embeddings[quantized.codes], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(quantized.commitment, distances.min(-1).mean() / CONFIG.code_width, rtol=1e-5)


def test_gradient_passes_straight_through_and_commitment_pulls_towards_the_code():
    codebook, features = codebook_and_features()
    weights = jax.random.normal(jax.random.key(3), features.shape)
    through = jax.jit(jax.grad(lambda f: jnp.sum(quantizers.quantize(codebook, f).embeddings * weights)))(features)
    np.testing.assert_array_equal(through, weights)
    pull = jax.jit(jax.grad(lambda f: quantizers.quantize(codebook, f).commitment))(features)
    embeddings = quantizers.lookup(codebook, jax.jit(quantizers.nearest_codes)(codebook, features))
    np.testing.assert_allclose(pull, 2 * (features - embeddings) / features.size, rtol=1e-5, atol=1e-8)


def test_update_equals_a_numpy_reference_and_restarts_the_rare_codes():
    codebook, features = codebook_and_features()
    codes = jax.jit(quantizers.nearest_codes)(codebook, features)
    update = jax.jit(functools.partial(quantizers.update_codebook, decay=0.9, restart_threshold=2.0))
    new = update(codebook, features, codes, jax.random.key(3))

    flat, one_hot = np.asarray(features).reshape(-1, 6), np.eye(20)[np.asarray(codes).ravel()]
    counts = 0.9 * np.asarray(codebook.counts) + 0.1 * one_hot.sum(0)
    sums = 0.9 * np.asarray(codebook.sums) + 0.1 * one_hot.T @ flat
    smoothed = (counts + 1e-7) / (counts.sum() + 20e-7) * counts.sum()
    np.testing.assert_allclose(new.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(new.sums, sums, rtol=1e-4, atol=1e-5)

    rare = counts < 2.0
    assert 0 < rare.sum() < 20
    np.testing.assert_allclose(new.embeddings[~rare], (sums / smoothed[:, None])[~rare], rtol=1e-4, atol=1e-5)
    restarted = {tuple(row) for row in np.asarray(new.embeddings)[rare]}
    assert len(restarted) == rare.sum() and restarted <= {tuple(row) for row in flat}


def test_update_of_a_batch_split_over_devices_is_that_of_the_whole():
    codebook, features = codebook_and_features(shape=(8, 2, 3, 3))
    codes = jax.jit(quantizers.nearest_codes)(codebook, features)

    def update(features, codes):
        return quantizers.update_codebook(codebook, features, codes, jax.random.key(3), decay=0.9, restart_threshold=1.0)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put((features, codes), NamedSharding(mesh, PartitionSpec("data")))
    for whole, parts in zip(jax.tree.leaves(jax.jit(update)(features, codes)), jax.tree.leaves(jax.jit(update)(*split))):
        np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)


def test_initial_codes_are_different_features():
    codebook, features = codebook_and_features()
    new = jax.jit(quantizers.init_from_features)(codebook, features, jax.random.key(4))
    rows = {tuple(row) for row in np.asarray(new.embeddings)}
    assert len(rows) == 20 and rows <= {tuple(row) for row in np.asarray(features).reshape(-1, 6)}
    np.testing.assert_array_equal(new.counts, 1)
    np.testing.assert_array_equal(new.sums, new.embeddings)


def test_too_few_features_are_repeated_with_noise():
    codebook, features = codebook_and_features(shape=(7,))
    new = jax.jit(quantizers.init_from_features)(codebook, features, jax.random.key(4))
    assert len(np.unique(np.asarray(new.embeddings), axis=0)) == 20
    distances = np.linalg.norm(np.asarray(new.embeddings)[:, None] - np.asarray(features), axis=-1)
    assert distances.min(1).max() < 0.05
    assert np.bincount(distances.argmin(1), minlength=7).min() >= 2


def test_code_metrics():
    metrics = quantizers.code_metrics(jnp.array([[0, 0], [3, 3]]), 8)
    assert float(metrics["perplexity"]) == pytest.approx(2, rel=1e-5)
    assert float(metrics["usage"]) == pytest.approx(0.25)
