"""Shapes over compressions and patches, precision, gradients and the loss of the tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from mebt_jax import config as config_module
from mebt_jax.tokenizer import autoencoder, quantizers
from mebt_jax.tokenizer.training import losses

CONFIG = dataclasses.replace(
    config_module.from_config_dict(base.get_config()).tokenizer,
    compression=(2, 4, 4),
    patch=(1, 2, 2),
    hidden=6,
    codes=16,
    code_width=4,
    l1_weight=3.0,
    l2_weight=5.0,
    commitment_weight=7.0,
)


def build(config):
    return autoencoder.Tokenizer(config, rngs=nnx.Rngs(0)), quantizers.init_codebook(
        config, jax.random.key(1)
    )


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
        tokenizer, codebook = build(config)
        codes = autoencoder.encode_to_codes(tokenizer, codebook, jnp.zeros((2, *size, 3)))
        return (
            tokenizer.encode(jnp.zeros((2, *size, 3))),
            codes,
            autoencoder.decode_codes(tokenizer, codebook, codes),
        )

    features, codes, video = jax.eval_shape(shapes)
    assert features.shape == (2, *grid, 4) and features.dtype == jnp.float32
    assert codes.shape == (2, *grid) and codes.dtype == jnp.int32
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


def test_folding_patches_keeps_pixels_together_and_can_be_undone():
    video = example_video()
    folded = autoencoder.fold_patches(video, (2, 4, 4))
    assert folded.shape == (2, 2, 2, 2, 96)
    np.testing.assert_array_equal(folded[1, 0, 1, 0].reshape(2, 4, 4, 3), video[1, :2, 4:, :4])
    np.testing.assert_array_equal(autoencoder.unfold_patches(folded, (2, 4, 4)), video)


@dataclasses.dataclass(frozen=True)
class Example:
    """One pass of an untrained tokenizer over a video, and the same codes made and decoded by the
    functions for use.
    """

    video: jax.Array
    codebook: quantizers.Codebook
    loss: jax.Array
    output: losses.TokenizerOutput
    gradients: nnx.State
    codes: jax.Array
    decoded: jax.Array


@pytest.fixture(scope="module")
def example():
    @jax.jit
    def run():
        tokenizer, codebook = build(CONFIG)
        for silent in (
            tokenizer.to_features.kernel,
            tokenizer.decoder.last.kernel,
        ):  # no gradient passes a network so begun
            silent[...] = 0.01 * jax.random.normal(jax.random.key(4), silent.shape)
        video = example_video(side=16)
        # Codes from the features, so that no clip is one code throughout: the norms would blow up
        # its rounding errors.
        codebook = quantizers.init_from_features(
            codebook, tokenizer.encode(video), jax.random.key(3)
        )
        graphdef, params = nnx.split(tokenizer, nnx.Param)
        (loss, output), gradients = jax.value_and_grad(
            lambda p: losses.tokenizer_loss(nnx.merge(graphdef, p), codebook, video, CONFIG),
            has_aux=True,
        )(params)
        codes = autoencoder.encode_to_codes(tokenizer, codebook, video)
        return (
            video,
            codebook,
            loss,
            output,
            gradients,
            codes,
            autoencoder.decode_codes(tokenizer, codebook, codes),
        )

    return Example(*run())


def test_codes_decode_to_the_reconstruction(example):
    np.testing.assert_array_equal(example.codes, example.output.codes)
    np.testing.assert_allclose(example.decoded, example.output.reconstruction, atol=1e-5)


def test_loss_is_the_weighted_sum_of_its_metrics(example):
    output = example.output
    error = np.asarray(output.reconstruction - example.video)
    distance = np.asarray(output.features - quantizers.lookup(example.codebook, output.codes))
    expected = (
        3 * np.abs(error).mean() + 5 * np.square(error).mean() + 7 * np.square(distance).mean()
    )
    np.testing.assert_allclose(example.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        output.metrics["psnr"], 10 * np.log10(1 / np.square(error).mean()), rtol=1e-5
    )
    assert set(output.metrics) == {
        "l1",
        "l2",
        "psnr",
        "commitment",
        "quantization_error",
        "perplexity",
        "usage",
        "dead",
    }


def test_untrained_decoder_paints_nearly_grey(example):
    assert float(jnp.abs(example.output.reconstruction).mean()) < 0.2


def test_gradients_reach_every_parameter(example):
    for path, gradient in jax.tree_util.tree_leaves_with_path(example.gradients):
        assert jnp.all(jnp.isfinite(gradient)) and float(jnp.abs(gradient).max()) > 0, (
            jax.tree_util.keystr(path)
        )


def test_bfloat16_computes_nearly_the_same_from_the_same_parameters():
    @jax.jit
    def both_precisions():
        exact, _ = build(CONFIG)
        _, params = nnx.split(exact, nnx.Param)
        graphdef, _ = nnx.split(build(dataclasses.replace(CONFIG, dtype="bfloat16"))[0], nnx.Param)
        low = nnx.merge(graphdef, params)
        features = exact.encode(example_video())
        return (features, exact.decode(features)), (
            low.encode(example_video()),
            low.decode(features),
        )

    for exact, low in zip(*both_precisions()):
        assert low.dtype == jnp.float32
        assert 0 < float(jnp.abs(exact - low).max()) < 0.1 * float(jnp.abs(exact).max())


def test_folding_adds_a_linear_shortcut_that_carries_the_pixels_and_the_paper_network_has_none():
    config = dataclasses.replace(CONFIG, compression=(2, 4, 4), patch=(1, 1, 1))
    assert not hasattr(nnx.eval_shape(lambda: build(config)[0]), "shortcut_in")
    tokenizer, _ = build(dataclasses.replace(config, patch=(2, 2, 2)))
    video = example_video(batch=1)
    features = tokenizer.encode(video)
    np.testing.assert_allclose(tokenizer.encode(0.5 * video), 0.5 * features, atol=1e-6)
    # One patch of the full compression decides one feature, and no other.
    changed = tokenizer.encode(video.at[:, :2, :4, :4].add(0.1)) != features  # [1, 2, 2, 2, E]
    assert changed[0, 0, 0, 0].any() and changed.any(-1).sum() == 1


@pytest.mark.parametrize("patch, alone", [((2, 4, 4), True), ((1, 2, 2), False)])
def test_a_patch_of_the_whole_compression_decides_its_feature_alone(patch, alone):
    tokenizer, _ = build(dataclasses.replace(CONFIG, patch=patch, norm="token"))
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
