"""Shapes over compressions and patches, precision, and the shortcut of the tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from mebt_jax import config as config_module
from mebt_jax.tokenizer import autoencoder

CONFIG = dataclasses.replace(
    config_module.from_config_dict(base.get_config()).tokenizer,
    compression=(2, 4, 4),
    patch=(1, 2, 2),
    hidden=6,
    codebook_size=16,
    code_width=4,
)


def build(config):
    return autoencoder.Tokenizer(config, rngs=nnx.Rngs(0))


def example_video(batch=2, frames=4, side=8):
    return jax.random.uniform(
        jax.random.key(2), (batch, frames, side, side, 3), minval=-0.5, maxval=0.5
    )


@pytest.mark.parametrize(
    "compression, patch, grid",
    [
        ((4, 8, 8), (1, 1, 1), (2, 2, 4)),
        ((2, 4, 4), (1, 1, 1), (4, 4, 8)),
        ((1, 4, 2), (1, 2, 1), (8, 4, 16)),
        ((4, 4, 4), (4, 4, 4), (2, 4, 8)),
        ((3, 4, 4), (3, 2, 1), (4, 4, 8)),
    ],
)
def test_shapes_follow_compression_and_patch(compression, patch, grid):
    config = dataclasses.replace(CONFIG, compression=compression, patch=patch)
    size = tuple(g * c for g, c in zip(grid, compression))

    def shapes():
        tokenizer, video = build(config), jnp.zeros((2, *size, 3))
        tokens = tokenizer.tokenize(video)
        return tokenizer.encode(video), tokens, tokenizer.decode_tokens(tokens)

    features, tokens, video = jax.eval_shape(shapes)
    assert features.shape == (2, *grid, 4) and features.dtype == jnp.float32
    assert tokens.shape == (2, *grid) and tokens.dtype == jnp.int32
    assert video.shape == (2, *size, 3) and video.dtype == jnp.float32


@pytest.mark.parametrize(
    "compression, patch, strides",
    [
        ((4, 8, 8), (1, 1, 1), ((2, 2, 2), (2, 2, 2), (1, 2, 2))),
        ((4, 8, 8), (2, 4, 4), ((2, 2, 2),)),
        ((4, 4, 4), (4, 2, 1), ((1, 2, 2), (1, 1, 2))),
        ((4, 4, 4), (4, 4, 4), ((1, 1, 1),)),
    ],
)
def test_strides_are_what_the_patch_leaves(compression, patch, strides):
    assert autoencoder.level_strides(compression, patch) == strides


def test_patches_keep_pixels_together_and_can_be_undone():
    video = example_video()
    patches = autoencoder.patchify(video, (2, 4, 4))
    assert patches.shape == (2, 2, 2, 2, 96)
    np.testing.assert_array_equal(patches[1, 0, 1, 0].reshape(2, 4, 4, 3), video[1, :2, 4:, :4])
    np.testing.assert_array_equal(autoencoder.unpatchify(patches, (2, 4, 4)), video)


def test_an_untrained_decoder_of_the_paper_is_near_grey_and_that_beside_a_shortcut_adds_nothing():
    features = jax.random.normal(jax.random.key(3), (1, 1, 2, 2, 4))

    @jax.jit
    def decoded():
        paper, other = (build(dataclasses.replace(CONFIG, patch=p)) for p in [(1, 1, 1), (2, 4, 4)])
        shortcut = autoencoder.unpatchify(other.shortcut_out(features), other.compression)
        return paper.decode(features), other.decode(features), shortcut

    paper, beside_shortcut, shortcut = decoded()
    # With a gain of 1 the deviation of the pixels would be about 1.
    assert 0.03 < float(paper.std()) < 0.3 and float(jnp.abs(paper.mean())) < 0.1
    np.testing.assert_array_equal(beside_shortcut, shortcut)


def test_bfloat16_computes_nearly_the_same_from_the_same_parameters():
    @jax.jit
    def both_precisions():
        exact = build(CONFIG)
        graphdef = nnx.graphdef(build(dataclasses.replace(CONFIG, dtype="bfloat16")))
        low = nnx.merge(graphdef, nnx.state(exact))
        features = exact.encode(example_video())
        return (features, exact.decode(features)), (
            low.encode(example_video()),
            low.decode(features),
        )

    for exact, low in zip(*both_precisions()):
        assert low.dtype == jnp.float32
        assert 0 < float(jnp.abs(exact - low).max()) < 0.1 * float(jnp.abs(exact).max())


def test_a_patch_adds_a_linear_shortcut_that_carries_the_pixels_and_the_paper_network_has_none():
    config = dataclasses.replace(CONFIG, compression=(2, 4, 4), patch=(1, 1, 1))
    assert not hasattr(nnx.eval_shape(lambda: build(config)), "shortcut_in")
    tokenizer = build(dataclasses.replace(config, patch=(2, 2, 2)))
    video = example_video(batch=1)
    features = tokenizer.encode(video)
    np.testing.assert_allclose(tokenizer.encode(0.5 * video), 0.5 * features, atol=1e-6)
    # One patch of the full compression decides one feature, and no other.
    changed = tokenizer.encode(video.at[:, :2, :4, :4].add(0.1)) != features  # [1, 2, 2, 2, E]
    assert changed[0, 0, 0, 0].any() and changed.any(-1).sum() == 1


@pytest.mark.parametrize("patch, alone", [((2, 4, 4), True), ((1, 2, 2), False)])
def test_a_patch_of_the_whole_compression_decides_its_feature_alone(patch, alone):
    tokenizer = build(dataclasses.replace(CONFIG, patch=patch, norm="layer"))
    tokenizer.to_features.kernel[...] = 0.1 * jax.random.normal(
        jax.random.key(4), tokenizer.to_features.kernel.shape
    )
    video = example_video(batch=1)
    changed = (
        jnp.abs(tokenizer.encode(video.at[:, :2, :4, :4].add(0.1)) - tokenizer.encode(video)).max(
            -1
        )
        > 1e-5
    )
    assert changed[0, 0, 0, 0] and (changed.sum() == 1) == alone
