"""Properties of the four quantizers, and the running averages of one against a plain numpy
reference.
"""

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

CONFIG = dataclasses.replace(
    config_module.from_config_dict(base.get_config()).tokenizer, codes=20, code_width=6
)


def codebook_and_features(shape=(2, 4, 4, 4), config=CONFIG):
    codebook = quantizers.init_codebook(config, jax.random.key(0))
    codebook = codebook.replace(
        counts=jax.random.uniform(jax.random.key(1), codebook.counts.shape, maxval=4.0)
    )
    return codebook, jax.random.normal(jax.random.key(2), (*shape, config.code_width))


@pytest.mark.parametrize("block", [7, 4096])
def test_every_feature_gets_its_nearest_code_whatever_the_block(block, monkeypatch):
    monkeypatch.setattr(quantizers, "CODE_BLOCK", block)
    codebook, features = codebook_and_features()
    distances = np.square(np.asarray(features)[..., None, :] - np.asarray(codebook.embeddings)).sum(
        -1
    )
    quantized = jax.jit(lambda c, f: quantizers.quantize(c, f, CONFIG))(codebook, features)
    np.testing.assert_array_equal(quantized.codes, distances.argmin(-1))
    np.testing.assert_allclose(
        quantized.embeddings, codebook.embeddings[quantized.codes], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        quantized.metrics["commitment"], distances.min(-1).mean() / CONFIG.code_width, rtol=1e-5
    )


def test_gradient_passes_straight_through_and_commitment_pulls_towards_the_code():
    codebook, features = codebook_and_features()
    weights = jax.random.normal(jax.random.key(3), features.shape)
    through = jax.jit(
        jax.grad(lambda f: jnp.sum(quantizers.quantize(codebook, f, CONFIG).embeddings * weights))
    )(features)
    np.testing.assert_array_equal(through, weights)
    pull = jax.jit(jax.grad(lambda f: quantizers.quantize(codebook, f, CONFIG).loss))(features)
    embeddings = quantizers.lookup(codebook, jax.jit(quantizers.nearest_codes)(codebook, features))
    np.testing.assert_allclose(
        pull, 0.25 * 2 * (features - embeddings) / features.size, rtol=1e-5, atol=1e-8
    )


def test_update_equals_a_numpy_reference_and_restarts_the_rare_codes():
    codebook, features = codebook_and_features()
    codes = jax.jit(quantizers.nearest_codes)(codebook, features)
    update = jax.jit(
        functools.partial(quantizers.update_codebook, decay=0.9, restart_threshold=2.0)
    )
    new = update(codebook, features, codes, jax.random.key(3))

    flat, one_hot = np.asarray(features).reshape(-1, 6), np.eye(20)[np.asarray(codes).ravel()]
    counts = 0.9 * np.asarray(codebook.counts) + 0.1 * one_hot.sum(0)
    sums = 0.9 * np.asarray(codebook.sums) + 0.1 * one_hot.T @ flat
    smoothed = (counts + 1e-7) / (counts.sum() + 20e-7) * counts.sum()
    np.testing.assert_allclose(new.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(new.sums, sums, rtol=1e-4, atol=1e-5)

    rare = counts < 2.0
    assert 0 < rare.sum() < 20
    np.testing.assert_allclose(
        new.embeddings[~rare], (sums / smoothed[:, None])[~rare], rtol=1e-4, atol=1e-5
    )
    restarted = {tuple(row) for row in np.asarray(new.embeddings)[rare]}
    assert len(restarted) == rare.sum() and restarted <= {tuple(row) for row in flat}


def test_update_of_a_batch_split_over_devices_is_that_of_the_whole():
    codebook, features = codebook_and_features(shape=(8, 2, 3, 3))
    codes = jax.jit(quantizers.nearest_codes)(codebook, features)

    def update(features, codes):
        return quantizers.update_codebook(
            codebook, features, codes, jax.random.key(3), decay=0.9, restart_threshold=1.0
        )

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put((features, codes), NamedSharding(mesh, PartitionSpec("data")))
    for whole, parts in zip(
        jax.tree.leaves(jax.jit(update)(features, codes)), jax.tree.leaves(jax.jit(update)(*split))
    ):
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


KINDS = {
    "ema": CONFIG,
    "gradient": dataclasses.replace(CONFIG, quantizer="gradient"),
    "fsq": dataclasses.replace(CONFIG, quantizer="fsq", codes=60, levels=(4, 5, 3), code_width=3),
    "lfq": dataclasses.replace(CONFIG, quantizer="lfq", codes=32, code_width=5),
}


def usable_codebook(config):
    codebook = quantizers.init_codebook(config, jax.random.key(0))
    if config.quantizer == "gradient":
        return codebook.replace(
            embeddings=jax.random.normal(jax.random.key(5), (config.codes, config.code_width))
        )
    return codebook


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_means_its_embedding_and_passes_gradients_on(kind):
    config = KINDS[kind]
    codebook = usable_codebook(config)
    assert codebook.embeddings.shape == (config.codes, config.code_width)
    assert len(np.unique(np.asarray(codebook.embeddings), axis=0)) == config.codes
    features = 2 * jax.random.normal(jax.random.key(2), (4, 16, config.code_width))

    @jax.jit
    def run(features):
        value = lambda f: quantizers.quantize(codebook, f, config)  # noqa: E731
        return (
            value(features),
            jax.grad(lambda f: value(f).embeddings.sum())(features),
            jax.grad(lambda f: value(f).loss)(features),
        )

    quantized, through, pull = run(features)
    np.testing.assert_allclose(
        quantized.embeddings, codebook.embeddings[quantized.codes], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(quantized.codes, quantizers.nearest_codes(codebook, features))
    assert np.all(np.asarray(through) > 0) and bool(jnp.any(pull != 0)) == (kind != "fsq")
    assert {"commitment", "perplexity", "usage", "dead"} <= set(quantized.metrics)
    counted = quantizers.update_codebook(
        codebook, features, quantized.codes, jax.random.key(3), decay=0.9, restart_threshold=0.0
    )
    seen = len(np.unique(quantized.codes)) / config.codes
    assert (
        float(quantized.metrics["usage"])
        == pytest.approx(seen)
        == pytest.approx(1 - float(quantizers.dead_share(counted, 0.9)))
    )
    assert float(quantized.metrics["dead"]) == 1


def test_finite_levels_round_squashed_features_and_reach_every_code():
    config = KINDS["fsq"]
    codebook = usable_codebook(config)
    assert [len(np.unique(column)) for column in np.asarray(codebook.embeddings).T] == [4, 5, 3]
    features = jnp.asarray(np.random.default_rng(0).uniform(-4, 4, (20_000, 3)), jnp.float32)
    codes = np.asarray(quantizers.nearest_codes(codebook, features))
    assert len(np.unique(codes)) == 60
    squashed = np.asarray(quantizers.squash(features, config.levels))
    distances = np.square(squashed[:, None] - np.asarray(codebook.embeddings)).sum(-1)
    np.testing.assert_allclose(distances[np.arange(len(codes)), codes], distances.min(1), atol=1e-6)
    np.testing.assert_allclose(quantizers.squash(jnp.zeros((1, 3)), config.levels), 0, atol=1e-6)


def test_entropies_of_signs_are_those_of_the_code_probabilities():
    config = KINDS["lfq"]
    table = np.asarray(usable_codebook(config).embeddings, np.float64)
    features = np.random.default_rng(0).normal(size=(50, 5))
    logits = -np.square(features[:, None] - table).sum(-1) / quantizers.TEMPERATURE
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    entropy = lambda p: -(p * np.log(p + 1e-300)).sum(-1)  # noqa: E731
    certainty, variety = quantizers.sign_entropies(jnp.asarray(features, jnp.float32))
    assert float(certainty) == pytest.approx(entropy(probabilities).mean(), rel=1e-4)
    assert float(variety) == pytest.approx(entropy(probabilities.mean(0)), rel=1e-4)


def test_the_trained_codebook_is_pulled_to_the_features():
    config = KINDS["gradient"]
    codebook, features = usable_codebook(config), jax.random.normal(jax.random.key(2), (64, 6))
    loss = lambda e: quantizers.quantize(codebook.replace(embeddings=e), features, config).loss  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(codebook.embeddings)
    codes = quantizers.nearest_codes(codebook, features)
    expected = jax.ops.segment_sum(
        2 * (codebook.embeddings[codes] - features) / features.size, codes, 20
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
