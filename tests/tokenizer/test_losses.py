"""The tokenizer's loss as a sum of its terms, its gradients, and a pass against the parts of the
tokenizer.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from mebt_jax import config as config_module
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.training import losses

CONFIG = dataclasses.replace(
    config_module.from_config_dict(base.get_config()).tokenizer,
    compression=(2, 4, 4),
    patch=(1, 2, 2),
    hidden=6,
    codebook_size=16,
    code_width=4,
    l1_weight=3.0,
    l2_weight=5.0,
    commitment_weight=7.0,
)


@dataclasses.dataclass(frozen=True)
class Example:
    """One pass of an untrained tokenizer over a video, and the same through its methods."""

    video: jax.Array
    loss: jax.Array
    output: losses.TokenizerOutput
    gradients: nnx.State
    tokens: jax.Array
    decoded: jax.Array
    embeddings: jax.Array


@pytest.fixture(scope="module")
def example():
    @jax.jit
    def run():
        tokenizer = Tokenizer(CONFIG, rngs=nnx.Rngs(0))
        # Layers that start at zero let no gradient through.
        for kernel in (tokenizer.to_features.kernel, tokenizer.decoder.last.kernel):
            kernel[...] = 0.01 * jax.random.normal(jax.random.key(4), kernel.shape)
        video = jax.random.uniform(jax.random.key(2), (2, 4, 16, 16, 3), minval=-0.5, maxval=0.5)
        # Otherwise a clip has one token throughout, and the norms blow up its rounding errors.
        tokenizer.quantizer.init_from_features(tokenizer.encode(video), jax.random.key(3))
        graphdef, params, model_state = nnx.split(tokenizer, nnx.Param, ...)
        (loss, output), gradients = jax.value_and_grad(
            lambda p: losses.tokenizer_loss(nnx.merge(graphdef, p, model_state), video, CONFIG),
            has_aux=True,
        )(params)
        tokens = tokenizer.tokenize(video)
        decoded, embeddings = tokenizer.decode_tokens(tokens), tokenizer.quantizer.lookup(tokens)
        return video, loss, output, gradients, tokens, decoded, embeddings

    return Example(*run())


def test_tokens_decode_to_the_reconstruction(example):
    np.testing.assert_array_equal(example.tokens, example.output.tokens)
    np.testing.assert_allclose(example.decoded, example.output.reconstruction, atol=1e-5)


def test_loss_is_the_weighted_sum_of_its_metrics(example):
    output = example.output
    error = np.asarray(output.reconstruction - example.video)
    distance = np.asarray(output.features - example.embeddings)
    expected = (
        3 * np.abs(error).mean() + 5 * np.square(error).mean() + 7 * np.square(distance).mean()
    )
    np.testing.assert_allclose(example.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        output.metrics["psnr"], 10 * np.log10(1 / np.square(error).mean()), rtol=1e-5
    )
    terms = {"l1", "l2", "psnr", "commitment"}
    assert set(output.metrics) == terms | {"quantization_error", "perplexity", "usage", "dead"}


def test_gradients_reach_every_parameter(example):
    for path, gradient in jax.tree_util.tree_leaves_with_path(example.gradients):
        assert jnp.all(jnp.isfinite(gradient)) and float(jnp.abs(gradient).max()) > 0, (
            jax.tree_util.keystr(path)
        )


def test_the_perceptual_term_compares_the_chosen_frames():
    video = jax.random.uniform(jax.random.key(0), (2, 3, 4, 4, 3))
    other = video.at[0, 1].add(0.5).at[1, 2].add(0.25)

    def distance(x, y):
        return jnp.abs(x - y).mean(axis=(1, 2, 3))

    config = dataclasses.replace(CONFIG, perceptual_weight=2.0)
    found = {}
    for frames in ([1, 2], [1, 0], [0, 1]):
        loss, metrics = losses.reconstruction_loss(
            other, video, config, distance, jnp.array(frames)
        )
        found[tuple(frames)] = float(metrics["perceptual"])
        expected = 3 * metrics["l1"] + 5 * metrics["l2"] + 2 * metrics["perceptual"]
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(
        [found[1, 2], found[1, 0], found[0, 1]], [0.375, 0.25, 0.0], atol=1e-6
    )
