"""Our tokenizer, discriminators and LPIPS against numbers that the official program computed with
random weights.

vqgan_tiny.npz and vqgan_more.npz come from mebt/vqgan.py (the latter with other strides, odd and
non-square sizes, BatchNorm, and discriminators in training mode), lpips.npz from
mebt/modules/lpips.py.
"""

import ast
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from official_weights import assert_close, load_vectors, state_dict_of

from mebt_jax import config as config_module
from mebt_jax.config import default_config
from mebt_jax.errors import UserError
from mebt_jax.interop.feature_weights import join_lpips, lpips_from_official
from mebt_jax.interop.names import filled, from_official
from mebt_jax.interop.tokenizer_weights import discriminator_part, tokenizer_from_official
from mebt_jax.tokenizer import autoencoder
from mebt_jax.tokenizer.training import losses
from mebt_jax.tokenizer.training.discriminators import CLIPS, FRAMES, Discriminator
from mebt_jax.tokenizer.training.lpips import LPIPS

CONFIG = dataclasses.replace(
    config_module.from_config_dict(default_config()).tokenizer,
    compression=(2, 4, 4),
    hidden=16,
    codebook_size=32,
    code_width=8,
)


@pytest.fixture(scope="module")
def vectors():
    return load_vectors("vqgan_tiny")


@pytest.fixture(scope="module")
def state_dict(vectors):
    return state_dict_of(vectors)


@pytest.fixture(scope="module")
def official(vectors, state_dict):
    """(variables, output of one pass over the vectors' video)."""
    variables = tokenizer_from_official(state_dict, CONFIG)
    video = jnp.asarray(channels_last(vectors["video"]))
    _, output = jax.jit(
        lambda v: losses.tokenizer_loss(nnx.merge(graphdef_of(CONFIG), v), video, CONFIG)
    )(variables)
    return variables, output


def graphdef_of(config):
    return nnx.graphdef(nnx.eval_shape(lambda: autoencoder.Tokenizer(config, rngs=nnx.Rngs(0))))


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def test_features_tokens_and_reconstruction_are_the_official_ones(official, vectors):
    _, output = official
    assert_close(output.features, channels_last(vectors["pre_vq"]), 1e-5)
    np.testing.assert_array_equal(output.tokens, vectors["indices"])
    assert_close(output.reconstruction, channels_last(vectors["reconstruction"]), 1e-5)


def test_commitment_and_perplexity_are_the_official_ones(official, vectors):
    _, output = official
    assert_close(
        CONFIG.commitment_weight * output.metrics["commitment"], vectors["commitment_loss"], 1e-5
    )
    assert_close(output.metrics["perplexity"], vectors["perplexity"], 1e-5)


@pytest.mark.parametrize(
    "name", ["strided_apart", pytest.param("time_kept", marks=pytest.mark.slow), "batch_norm"]
)
def test_other_strides_sizes_and_norms(name):
    vectors = load_vectors(f"vqgan_more/{name}")
    given = ast.literal_eval(str(vectors["config"]))
    config = dataclasses.replace(
        CONFIG,
        compression=given["down"],
        hidden=given["hidden"],
        codebook_size=given["codes"],
        code_width=given["code_width"],
        norm=given["norm"],
    )
    variables = tokenizer_from_official(state_dict_of(vectors), config)

    def run(variables, video):
        tokenizer = nnx.merge(graphdef_of(config), variables)
        features = tokenizer.encode(video)
        tokens = tokenizer.quantizer.tokenize(features)
        return features, tokens, tokenizer.decode_tokens(tokens)

    features, tokens, reconstruction = jax.jit(run)(
        variables, channels_last(vectors["video"].astype(np.float32))
    )
    assert_close(features, channels_last(vectors["pre_vq"]), 1e-5)
    np.testing.assert_array_equal(tokens, vectors["indices"])
    assert_close(reconstruction[:, :, ::2, ::2], channels_last(vectors["reconstruction"]), 1e-5)


@pytest.mark.slow
def test_batch_norm_in_training():
    """Statistics of the batch instead of the stored ones, which move towards them; embeddings are
    those of the given tokens.
    """
    vectors = load_vectors("vqgan_more/batch_norm")
    given, weights = ast.literal_eval(str(vectors["config"])), state_dict_of(vectors)
    config = dataclasses.replace(
        CONFIG,
        compression=given["down"],
        hidden=given["hidden"],
        codebook_size=given["codes"],
        code_width=given["code_width"],
        norm="batch",
    )
    params, model_state = nnx.split_state(tokenizer_from_official(weights, config), nnx.Param, ...)
    model_state = jax.tree.map(jnp.asarray, model_state)  # training writes to traced variables
    video = channels_last(vectors["video"].astype(np.float32))

    def run(params):
        tokenizer = nnx.merge(graphdef_of(config), params, model_state, copy=True)
        tokenizer.train()
        features = tokenizer.encode(video)
        reconstruction = tokenizer.decode_tokens(vectors["indices"])
        loss = jnp.mean(features**2) + jnp.mean(jnp.abs(reconstruction - video))
        return loss, (features, reconstruction, nnx.state(tokenizer, nnx.BatchStat))

    gradients, (features, reconstruction, statistics) = jax.jit(jax.grad(run, has_aux=True))(params)
    assert_close(features, channels_last(vectors["training/pre_vq"]), 1e-5)
    assert_close(
        reconstruction[:, :, ::2, ::2], channels_last(vectors["training/reconstruction"]), 1e-5
    )
    kernel = vectors["training/gradient/encoder.conv_first.conv.weight"]
    assert_close(
        gradients["encoder"]["first"]["kernel"][...], np.moveaxis(kernel, (0, 1), (-1, -2)), 1e-4
    )
    assert_close(
        gradients["decoder"]["norm"]["scale"][...],
        vectors["training/gradient/decoder.final_block.0.weight"],
        1e-4,
    )

    after = {
        name.removeprefix("training/after/"): value
        for name, value in vectors.items()
        if "after/" in name
    }
    expected = tokenizer_from_official(weights | after, config)
    leaves = jax.tree_util.tree_leaves_with_path(statistics)
    assert len(leaves) == len(after)
    of_official = dict(jax.tree_util.tree_leaves_with_path(expected))
    for path, leaf in leaves:
        assert_close(leaf, of_official[path], 1e-5)


@pytest.mark.parametrize(
    "ours, official_name", [("frame_discriminator", "image"), ("clip_discriminator", "video")]
)
def test_discriminators_are_the_official_ones(vectors, state_dict, ours, official_name):
    discriminator = discriminator_of(state_dict, ours, channels=8, layers=3)
    video = channels_last(vectors["video"])
    output = discriminator(video[:, :1] if official_name == "image" else video)
    frames = (lambda x: x[:, :, None]) if official_name == "image" else (lambda x: x)
    assert_close(
        output.logits, channels_last(frames(vectors[f"disc_{official_name}_logits"])), 1e-5
    )
    assert len(output.features) == 4
    for i, feature in enumerate(output.features):
        assert_close(feature, channels_last(frames(vectors[f"disc_{official_name}_feat{i}"])), 1e-5)


@pytest.mark.parametrize("layers", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "ours, official_name", [("frame_discriminator", "image"), ("clip_discriminator", "video")]
)
def test_discriminators_in_training_mode(ours, official_name, layers):
    """Statistics of the batch instead of the stored ones, which move towards them."""
    vectors = load_vectors(f"vqgan_more/discriminators_{layers}")
    discriminator = discriminator_of(state_dict_of(vectors), ours, channels=6, layers=layers)
    video = channels_last(vectors["video"].astype(np.float32))
    discriminator.train()
    output = discriminator(video[:, 3:4] if official_name == "image" else video)
    logits = vectors[f"{official_name}_logits"]
    assert_close(
        output.logits,
        channels_last(logits[:, :, None] if official_name == "image" else logits),
        1e-5,
    )
    for i, feature in enumerate(output.features):
        assert_close(
            feature.mean(axis=(0, 1, 2, 3)), vectors[f"{official_name}_feature_means_{i}"], 1e-5
        )

    for i in range(1, layers + 1):
        norm = discriminator.layers[i].norm
        for stored, official_leaf in ((norm.mean, "running_mean"), (norm.variance, "running_var")):
            expected = vectors[f"after/{official_name}_discriminator.model{i}.1.{official_leaf}"]
            assert_close(stored[...], expected, 1e-5)


def discriminator_of(state_dict, ours, channels, layers):
    state, part = discriminator_part(ours, channels, layers)
    used = {name: state_dict[name] for name in part.official_shapes()}
    kernel_size = FRAMES if ours == "frame_discriminator" else CLIPS
    graphdef, _ = nnx.split(
        nnx.eval_shape(lambda: Discriminator(kernel_size, channels, layers, rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graphdef, filled(state, from_official(used, {"it": part}, fix="")["it"]))


def test_perceptual_distance_is_the_official_one():
    vectors = load_vectors("lpips")
    weights = state_dict_of(vectors)
    linear = {name: weight for name, weight in weights.items() if name.startswith("lin")}
    vgg = {
        f"features.{name.split('.', 2)[2]}": weight
        for name, weight in weights.items()
        if name.startswith("net.")
    }
    # The two files that are in circulation, torchvision's with the classifier that LPIPS does not
    # use.
    state = lpips_from_official(join_lpips(linear, vgg | {"classifier.0.weight": np.zeros((4, 4))}))
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: LPIPS(rngs=nnx.Rngs(0))))
    distance = jax.jit(lambda state, x, y: nnx.merge(graphdef, state)(x, y))
    a, b = channels_last(vectors["a"]), channels_last(vectors["b"])
    assert_close(distance(state, a, b), vectors["value"], 1e-5)
    np.testing.assert_array_equal(distance(state, a, a), 0)


def test_other_scaling_is_refused():
    weights = state_dict_of(load_vectors("lpips"))
    with pytest.raises(
        UserError, match=r"scaling_layer.shift of the LPIPS weights is \[0. 0. 0.\]"
    ):
        lpips_from_official(weights | {"scaling_layer.shift": np.zeros((1, 3, 1, 1))})


@pytest.mark.parametrize("restart_threshold", [0.0, 1.0])
def test_codebook_step_is_the_official_one(official, vectors, restart_threshold):
    """The vectors were made without restarts; with them, only embeddings with a count below the
    threshold may differ.
    """
    variables, output = official
    config = dataclasses.replace(CONFIG, restart_threshold=restart_threshold)
    quantizer = nnx.merge(graphdef_of(config), jax.tree.map(jnp.asarray, variables)).quantizer
    quantizer.update(output.features, output.tokens, jax.random.key(0))
    assert_close(quantizer.counts[...], vectors["ema_N"], 1e-6)
    assert_close(quantizer.sums[...], vectors["ema_z_avg"], 1e-6)
    kept = vectors["ema_N"] >= restart_threshold
    assert 0 < kept.sum() and kept.all() == (restart_threshold == 0)
    assert_close(quantizer.codebook[...][kept], vectors["ema_embeddings"][kept], 1e-6)


def test_what_does_not_fit_is_listed_by_name(state_dict):
    broken = dict(state_dict)
    del broken["codebook.N"]
    broken["encoder.extra"] = np.zeros(3)
    broken["pre_vq_conv.conv.bias"] = np.zeros(7)
    with pytest.raises(UserError) as error:
        tokenizer_from_official(broken, CONFIG)
    for problem in (
        "codebook.N is missing",
        "encoder.extra is unknown",
        "pre_vq_conv.conv.bias has shape (7,) instead of (8,)",
    ):
        assert problem in str(error.value)


def test_patches_have_no_official_counterpart(state_dict):
    with pytest.raises(UserError, match=r"patch is \(1, 2, 2\)"):
        tokenizer_from_official(state_dict, dataclasses.replace(CONFIG, patch=(1, 2, 2)))
