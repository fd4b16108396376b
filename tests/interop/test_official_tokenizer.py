"""Our tokenizer against numbers that the official program computed (vectors/vqgan_tiny.npz) with random weights.

The vectors hold no weights: each is made from its name, by the rule that the official modules were filled with.
"""

import ast
import dataclasses
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from configs import base
from mebt_jax import config as config_module
from mebt_jax.errors import UserError
from mebt_jax.interop.tokenizer import tokenizer_from_official
from mebt_jax.tokenizer import autoencoder, losses, quantizers

CONFIG = dataclasses.replace(config_module.from_config_dict(base.get_config()).tokenizer,
                             compression=(2, 4, 4), hidden=16, codes=32, code_width=8)


@pytest.fixture(scope="module")
def vectors():
    with np.load(Path(__file__).parent / "vectors" / "vqgan_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def state_dict(vectors):
    shapes = {str(name): ast.literal_eval(str(shape)) for name, shape in zip(vectors["names"], vectors["shapes"])}
    return {name: weight(name, shape, int(vectors["seed"])) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def official(vectors, state_dict):
    """(codebook, output of one pass over the vectors' video)."""
    params, codebook = tokenizer_from_official(state_dict, CONFIG)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: autoencoder.Tokenizer(CONFIG, rngs=nnx.Rngs(0))), nnx.Param)
    video = jnp.asarray(channels_last(vectors["video"]))
    _, output = jax.jit(lambda p: losses.tokenizer_loss(nnx.merge(graphdef, p), codebook, video, CONFIG))(params)
    return codebook, output


def weight(name, shape, seed):
    w = np.asarray(np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**31).randn(*shape), np.float32)
    if name.endswith("running_var") or name == "codebook.N":
        return 0.5 + np.abs(w)
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + 0.1 * w
    if name.startswith("codebook"):
        return w
    if len(shape) > 1:
        return w * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
    return 0.1 * w


def channels_last(x):
    return rearrange(x, "b c t h w -> b t h w c")


def assert_close(actual, expected, relative):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_features_codes_and_reconstruction_are_the_official_ones(official, vectors):
    _, output = official
    assert_close(output.features, channels_last(vectors["pre_vq"]), 1e-5)
    np.testing.assert_array_equal(output.codes, vectors["indices"])
    assert_close(output.reconstruction, channels_last(vectors["reconstruction"]), 1e-5)


def test_commitment_and_perplexity_are_the_official_ones(official, vectors):
    _, output = official
    assert_close(CONFIG.commitment_weight * output.metrics["commitment"], vectors["commitment_loss"], 1e-5)
    assert_close(output.metrics["perplexity"], vectors["perplexity"], 1e-5)


@pytest.mark.parametrize("restart_threshold", [0.0, 1.0])
def test_codebook_step_is_the_official_one(official, vectors, restart_threshold):
    """The vectors were made without restarts; with them, only the codes below the threshold may differ."""
    codebook, output = official
    new = quantizers.update_codebook(codebook, output.features, output.codes, jax.random.key(0), decay=0.99,
                                     restart_threshold=restart_threshold)
    assert_close(new.counts, vectors["ema_N"], 1e-6)
    assert_close(new.sums, vectors["ema_z_avg"], 1e-6)
    kept = vectors["ema_N"] >= restart_threshold
    assert 0 < kept.sum() and kept.all() == (restart_threshold == 0)
    assert_close(new.embeddings[kept], vectors["ema_embeddings"][kept], 1e-6)


def test_what_does_not_fit_is_listed_by_name(state_dict):
    broken = dict(state_dict)
    del broken["codebook.N"]
    broken["encoder.extra"] = np.zeros(3)
    broken["pre_vq_conv.conv.bias"] = np.zeros(7)
    with pytest.raises(UserError) as error:
        tokenizer_from_official(broken, CONFIG)
    for problem in ("codebook.N is missing", "encoder.extra is unknown",
                    "pre_vq_conv.conv.bias has shape (7,) instead of (8,)"):
        assert problem in str(error.value)


def test_patches_have_no_official_counterpart(state_dict):
    with pytest.raises(UserError, match=r"patch is \(1, 2, 2\)"):
        tokenizer_from_official(state_dict, dataclasses.replace(CONFIG, patch=(1, 2, 2)))
