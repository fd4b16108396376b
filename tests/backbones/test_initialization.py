"""The local start: heads look at neighbours, values pass through, similar tokens start alike."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from mebt_jax.backbones.interface import TokenGrid
from mebt_jax.backbones.mebt import initialization
from mebt_jax.backbones.mebt.mebt_config import FLAVOURS
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import from_config_dict
from mebt_jax.nn import rotary

GRID, HEADS, HEAD_WIDTH = (4, 5, 6), 3, 24
CONFIG = dataclasses.replace(
    from_config_dict(get_config()).backbone,
    layers=("encode", "latent", "decode") * 2,
    heads=HEADS,
    width=HEADS * HEAD_WIDTH,
    num_latents=120,
    **FLAVOURS["modern"],
    dtype="float32",
)
CODEBOOK = (
    jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
    .at[1]
    .set(0.3)
    .at[2]
    .set(0.31)
)


@pytest.fixture(scope="module")
def model():
    return MeBT.create(CONFIG, TokenGrid(7, GRID, CODEBOOK), jax.random.key(1))


def test_each_decode_head_looks_at_its_own_neighbour(model):
    everywhere = jnp.arange(120)[None]
    centre = jnp.array([[np.ravel_multi_index((1, 2, 3), GRID)]])
    tokens = rotary.token_angles(everywhere, GRID, HEAD_WIDTH)
    seen = []
    for repeat in range(2):
        block = jax.tree.map(
            lambda x: x[repeat], nnx.to_pure_dict(nnx.state(model.stacks[0].blocks[2], nnx.Param))
        )
        query = rotary.rotate(
            block["attention"]["query"]["bias"].reshape(1, 1, HEADS, HEAD_WIDTH),
            rotary.token_angles(centre, GRID, HEAD_WIDTH),
        )
        key = rotary.rotate(
            jnp.broadcast_to(
                block["attention"]["key"]["bias"].reshape(1, 1, HEADS, HEAD_WIDTH),
                (1, 120, HEADS, HEAD_WIDTH),
            ),
            tokens,
        )
        scores = np.einsum("bqkd,bskd->ks", query, key)
        found = np.stack(np.unravel_index(scores.argmax(1), GRID), axis=-1) - np.array([[1, 2, 3]])
        seen += [tuple(step) for step in found]
    # 120 latents on 120 cells: the spacing of the latents is one cell of the cube that has their
    # volume.
    spacing = np.array(GRID) / 120 ** (1 / 3)
    assert seen == [
        tuple(np.rint(np.array(step) * spacing).astype(int))
        for step in initialization.NEIGHBOURS[:6]
    ]


def test_values_pass_through_and_every_layer_differs(model):
    for block in model.stacks[0].blocks:
        for repeat in range(2):
            attention = block.attention
            through = attention.value.kernel[...][repeat] @ attention.output.kernel[...][repeat]
            np.testing.assert_allclose(through, np.eye(HEADS * HEAD_WIDTH), atol=1e-5)
        first, second = block.attention.value.kernel[...]
        assert not np.allclose(first, second, atol=0.1)


def test_tokens_with_similar_codebook_entries_start_alike():
    projected = np.asarray(initialization.project_codebook(CODEBOOK, 64, jax.random.key(0)))
    distances = np.linalg.norm(projected[:, None] - projected, axis=-1) + np.where(
        np.eye(7), np.inf, 0
    )
    assert np.unravel_index(distances.argmin(), distances.shape) in ((1, 2), (2, 1)) and np.mean(
        projected**2
    ) == pytest.approx(1)


def test_the_shapes_of_the_parameters_stay(model):
    before = nnx.eval_shape(lambda: MeBT(CONFIG, TokenGrid(7, GRID), rngs=nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, nnx.state(model)) == jax.tree.map(jnp.shape, nnx.state(before))
