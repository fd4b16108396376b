"""The frozen first stage: clips to tokens and back, on one device and on a mesh."""

import numpy as np
import pytest
from flax import nnx
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.runtime import host_arrays
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.latent_space import TokenSpace

CONFIG = from_config_dict(tiny_config())
VIDEO = np.random.default_rng(0).integers(0, 256, (8, 8, 16, 16, 3), np.uint8)


def space_on(**axes) -> TokenSpace:
    config = from_config_dict(tiny_config(**{f"mesh__{k}": v for k, v in axes.items()}))
    tokenizer = Tokenizer(CONFIG.tokenizer, rngs=nnx.Rngs(0))
    return TokenSpace(*nnx.split(tokenizer), "0", mesh_lib.make_mesh(config.mesh))


@pytest.fixture(scope="module")
def space():
    return space_on(data=1)


def test_clips_become_tokens_and_frames_again(space):
    tokens = space.encode({"video": VIDEO, "label": np.arange(8)})
    assert tokens.shape == (8, *CONFIG.grid) and tokens.dtype == np.int32
    assert 0 <= tokens.min() and tokens.max() < CONFIG.tokenizer.codebook_size
    frames = space.decode(tokens)
    assert frames.shape == VIDEO.shape and frames.dtype == np.uint8
    assert space.codebook.shape == (CONFIG.tokenizer.codebook_size, CONFIG.tokenizer.code_width)


def test_stored_tokens_are_taken_as_they_are(space):
    stored = np.arange(8 * 32, dtype=np.int32).reshape(8, *CONFIG.grid) % 16
    np.testing.assert_array_equal(space.encode({"tokens": stored}), stored)


def test_a_mesh_changes_nothing(space):
    split = space_on(data=8)
    tokens = split.encode({"video": VIDEO})
    assert tokens.addressable_shards[0].data.shape == (1, *CONFIG.grid)
    np.testing.assert_array_equal(tokens, space.encode({"video": VIDEO}))
    np.testing.assert_array_equal(split.encode_on_host(VIDEO), tokens)
    frames = host_arrays.on_host(split.decode(tokens), split.mesh)
    assert np.abs(frames.astype(int) - np.asarray(space.decode(np.asarray(tokens)))).max() <= 1


def test_memory_grows_with_the_clip(space):
    assert space.bytes_per_clip(CONFIG) >= VIDEO[0].size
