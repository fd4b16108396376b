"""Causal tokenizers: which frames a token sees, and long videos in parts against the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from mebt_jax import config as config_module
from mebt_jax.tokenizer import streaming
from mebt_jax.tokenizer.autoencoder import Tokenizer

CONFIG = dataclasses.replace(
    config_module.from_config_dict(base.get_config()).tokenizer,
    causal=True,
    norm="layer",
    hidden=2,
    quantizer="lfq",
    codebook_size=16,
    code_width=4,
    compression=(4, 2, 2),
)


def build(config):
    """A tokenizer whose network does not start at zero."""
    tokenizer = Tokenizer(config, rngs=nnx.Rngs(0))
    for kernel in (tokenizer.to_features.kernel, tokenizer.decoder.last.kernel):
        kernel[...] = 0.3 * jax.random.normal(jax.random.key(4), kernel.shape)
    return tokenizer


def example_video(frames, side=4):
    return jax.random.uniform(
        jax.random.key(2), (1, frames, side, side, 3), minval=-0.5, maxval=0.5
    )


@pytest.mark.parametrize(
    "compression, patch",
    [
        ((4, 8, 8), (1, 1, 1)),
        ((8, 2, 1), (1, 1, 1)),
        ((1, 4, 8), (1, 2, 2)),
        ((4, 2, 4), (4, 2, 4)),
        ((8, 1, 2), (2, 1, 1)),
    ],
)
def test_one_and_a_multiple_of_the_compression_become_one_and_that_many(compression, patch):
    config = dataclasses.replace(CONFIG, compression=compression, patch=patch)
    for more in (0, 1, 3):
        video = jnp.zeros((1, 1 + more * compression[0], 8, 16, 3))

        def shapes(video):
            tokenizer = Tokenizer(config, rngs=nnx.Rngs(0))
            features = tokenizer.encode(video)
            return features, tokenizer.decode(features)

        features, decoded = jax.eval_shape(shapes, video)
        assert (
            features.shape == (1, 1 + more, 8 // compression[1], 16 // compression[2], 4)
            and decoded.shape == video.shape
        )


@pytest.mark.parametrize(
    "patch",
    [
        (2, 1, 1),
        pytest.param((1, 1, 1), marks=pytest.mark.slow),
        pytest.param((4, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_no_token_and_no_frame_sees_what_comes_later_and_parts_make_the_whole(patch):
    video = example_video(9)

    @jax.jit
    def run(video):
        tokenizer = build(dataclasses.replace(CONFIG, patch=patch))
        features = tokenizer.encode(video)
        tokens = tokenizer.quantizer.tokenize(features)
        embeddings = tokenizer.quantizer.lookup(tokens)
        cut = [video[:, :1], video[:, 1:5], video[:, 5:]]
        parts = list(streaming.stream(functools.partial(streaming.encode_part, tokenizer), cut))
        decoded = list(streaming.stream(functools.partial(streaming.decode_part, tokenizer), parts))
        return (
            features,
            tokens,
            tokenizer.decode(embeddings),
            parts,
            decoded,
            tokenizer.encode(video.at[:, 5:].add(1.0)),
            tokenizer.decode(embeddings.at[:, 2:].add(1.0)),
        )

    features, tokens, whole, parts, decoded, later, changed = run(video)
    assert features.shape[1] == 3 and float(features.std()) > 0.1
    np.testing.assert_allclose(later[:, :2], features[:, :2], atol=1e-5)  # of frames 0, and 1 to 4
    assert jnp.abs(later - features)[:, 2].max() > 0.1
    np.testing.assert_allclose(changed[:, :5], whole[:, :5], atol=1e-5)
    assert jnp.all(jnp.abs(changed - whole)[:, 5:].max(axis=(0, 2, 3, 4)) > 1e-3)

    assert [part.shape[1] for part in parts] == [1, 1, 1]
    np.testing.assert_array_equal(jnp.concatenate(parts, 1), tokens)
    np.testing.assert_allclose(jnp.concatenate(decoded, 1), whole, atol=1e-5)
