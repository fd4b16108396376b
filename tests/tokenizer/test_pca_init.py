"""The fitted start of a tokenizer: the best linear map, and a codebook among the features, rare
ones too.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import base
from mebt_jax import config as config_module
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.training import losses, pca_init

CONFIG = dataclasses.replace(
    config_module.from_config_dict(base.get_config()).tokenizer,
    compression=(2, 2, 2),
    patch=(2, 2, 2),
    hidden=4,
    codebook_size=6,
    code_width=24,
)


def fitted(config, video):
    @jax.jit
    def fit(video):
        tokenizer = Tokenizer(config, rngs=nnx.Rngs(0))
        pca_init.fit(tokenizer, video, jax.random.key(1), batch_size=2)
        return nnx.state(tokenizer)

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Tokenizer(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, fit(video))


@pytest.mark.parametrize("width", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_the_linear_map_is_the_best_of_its_width(width):
    rng = np.random.default_rng(0)
    patches = (
        rng.normal(size=(4, 8, 24))
        * np.geomspace(1, 0.01, 24)
        @ np.linalg.qr(rng.normal(size=(24, 24)))[0]
        + 0.1
    )
    video = jnp.asarray(
        patches.reshape(4, 2, 2, 2, 2, 2, 2, 3)
        .transpose(0, 1, 4, 2, 5, 3, 6, 7)
        .reshape(4, 4, 4, 4, 3),
        jnp.float32,
    )
    values = np.linalg.svd((patches - patches.mean((0, 1))).reshape(-1, 24), compute_uv=False)
    tokenizer = fitted(dataclasses.replace(CONFIG, code_width=width), video)
    error = float(jnp.square(tokenizer.decode(tokenizer.encode(video)) - video).sum())
    assert error == pytest.approx(float(np.sum(values[width:] ** 2)), rel=1e-3, abs=1e-5)


def test_every_kind_of_patch_gets_a_token_however_rare():
    kinds = jax.random.uniform(jax.random.key(2), (6, 24), minval=-0.5, maxval=0.5)
    which = np.zeros(512, int)
    which[:5] = [1, 2, 3, 4, 5]  # each of them once among the many of kind 0
    video = (
        kinds[jnp.asarray(which)]
        .reshape(8, 4, 4, 4, 2, 2, 2, 3)
        .transpose(0, 1, 4, 2, 5, 3, 6, 7)
        .reshape(8, 8, 8, 8, 3)
    )
    tokenizer = fitted(CONFIG, video)
    tokens, quantizer = tokenizer.tokenize(video), tokenizer.quantizer
    assert len(np.unique(tokens)) == 6
    np.testing.assert_allclose(tokenizer.decode_tokens(tokens), video, atol=1e-3)
    # The running counts are those of a batch of two of the eight clips.
    counts = quantizer.counts[...]
    np.testing.assert_allclose(np.sort(counts), np.sort(np.bincount(which)) / 4, rtol=1e-5)
    np.testing.assert_allclose(
        quantizer.sums[...] / counts[:, None], quantizer.codebook[...], atol=1e-5
    )


@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("fsq", {"levels": (5, 3, 2), "code_width": 3, "codebook_size": 30}),
        pytest.param("lfq", {"code_width": 3, "codebook_size": 8}, marks=pytest.mark.slow),
    ],
)
def test_components_spread_over_a_fixed_grid_and_the_shortcut_to_pixels_is_the_best(kind, sizes):
    config = dataclasses.replace(CONFIG, quantizer=kind, **sizes)
    rng = np.random.default_rng(0)
    colours = 0.3 * rng.normal(
        size=(8, 2, 4, 4, 3)
    )  # one for each patch, so that three components are all there is
    video = jnp.asarray(colours.repeat(2, 1).repeat(2, 2).repeat(2, 3), jnp.float32)
    tokenizer = fitted(config, video)
    features = tokenizer.encode(video)
    np.testing.assert_allclose(features.std((0, 1, 2, 3)), 1, rtol=1e-3)
    tokens = tokenizer.quantizer.tokenize(features)
    error = video - tokenizer.decode_tokens(tokens)
    # What the best linear map leaves is correlated with nothing it sees.
    left = error[:, ::2, ::2, ::2].reshape(-1, 3)
    seen = tokenizer.quantizer.lookup(tokens).reshape(-1, config.code_width)
    np.testing.assert_allclose(seen.T @ left / len(left), 0, atol=1e-4)
    assert float(jnp.square(error).mean()) < 0.5 * float(jnp.square(video).mean())


@pytest.mark.slow
def test_the_official_network_starts_its_codebook_at_features_of_one_batch():
    config = dataclasses.replace(CONFIG, patch=(1, 1, 1))
    video = jax.random.uniform(jax.random.key(3), (4, 4, 4, 4, 3))
    before = jax.jit(lambda: nnx.state(Tokenizer(config, rngs=nnx.Rngs(0)), nnx.Param))()
    tokenizer = fitted(config, video)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(tokenizer, nnx.Param))
    features = tokenizer.encode(video[:2]).reshape(-1, 24)
    for embedding in tokenizer.quantizer.codebook[...]:
        assert jnp.abs(features - embedding[None]).max(-1).min() < 1e-6


def test_enough_clips_for_the_mesh_to_share():
    assert (
        pca_init.clips_needed(512, 64, 16, has_shortcut=True) == 1024
        and pca_init.clips_needed(16, 32, 8, has_shortcut=True) == 64
    )
    assert (
        pca_init.clips_needed(16_384, 8192, 6, has_shortcut=True) == 24
        and pca_init.clips_needed(512, 10**6, 4, has_shortcut=True) == 4
    )
    assert pca_init.clips_needed(512, 64, 16, has_shortcut=False) == 16


@pytest.mark.slow
def test_the_first_steps_do_not_undo_the_fit():
    """Adam moves every weight by the whole learning rate; the network beside the shortcut must
    count for less than that.
    """
    config = dataclasses.replace(CONFIG, hidden=64, codebook_size=16)
    video = jax.random.uniform(jax.random.key(3), (2, 2, 8, 8, 3), minval=-0.5, maxval=0.5)
    tokenizer = fitted(config, video)
    graphdef, params, model_state = nnx.split(tokenizer, nnx.Param, ...)
    optimizer = optax.adam(3e-4, 0.9, 0.95)

    def step(carry, _):
        params, moments = carry
        (_, output), gradients = jax.value_and_grad(
            lambda p: losses.tokenizer_loss(nnx.merge(graphdef, p, model_state), video, config),
            has_aux=True,
        )(params)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(params, updates), moments), output.metrics["l2"]

    errors = jax.jit(lambda carry: jax.lax.scan(step, carry, length=5))(
        (params, optimizer.init(params))
    )[1]
    assert errors.max() < 1.05 * errors[0]
