"""Starting values of the `modern` flavour: every head looks at a place of its own nearby, and codes
that look alike start alike.

The official start is small noise everywhere, with which attention first learns averages over the
clip and only after very many steps what lies where. Here a head starts with a displacement, in the
biases of its query and key: the kernel that they make under rotary positions has its peak where the
asked token lies that far from the asking one. Values pass through unchanged (value and output start
as an orthogonal matrix and its transpose, after Trockman and Kolter 2023), so the last layers
already see what the tokens around a target are. benchmarks/RESULTS.md has what this is worth.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mebt_jax.backbones.mebt.block import Block
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.nn import rotary

PEAK = 3.0  # size of the biases: the scores at the peak lie above those one cell away by about 6
# Standard deviation of the matrices times the square root of their inputs: content weighs little in
# the scores at first.
QUERY_KEY_GAIN, MLP_IN_GAIN, MLP_OUT_GAIN = 0.1, 0.5, 0.2
LATENT_NOISE = 0.3  # that tells latents apart, beside their places
CODE_SHARE = 0.8  # of a token embedding's variance that comes from the embedding of its code
# Displacements along (t, h, w), the nearest first and those in time before those in space.
NEIGHBOURS = sorted(
    itertools.product((-1, 0, 1), repeat=3), key=lambda step: (sum(map(abs, step)), -abs(step[0]))
)[1:]


def start_locally(model: MeBT, codebook: jax.Array, key: jax.Array) -> None:
    """Overwrites the noise of a `modern` model that was just made; can be jitted.

    Args:
        model: its grid and its sizes are read off it.
        codebook: embeddings [V, E] of the tokenizer's codes.
        key: random key.
    """
    latents, width = model.latents.shape
    look_key, token_key, mask_key, shared_key, own_key, key = jax.random.split(key, 6)
    looks = code_looks(codebook, width, look_key)  # [V, D]
    model.token_embedding[...] = CODE_SHARE**0.5 * looks + (
        1 - CODE_SHARE
    ) ** 0.5 * jax.random.normal(token_key, looks.shape)
    model.head.kernel[...] = model.head.kernel[...] + 0.02 * looks.T
    model.mask_embedding[...] = jax.random.normal(mask_key, (width,))
    model.latents[...] = jax.random.normal(
        shared_key, (1, width)
    ) + LATENT_NOISE * jax.random.normal(own_key, (latents, width))

    spacing = np.array(model.grid) / latents ** (1 / 3)  # of the latents, in cells
    neighbours = itertools.cycle(NEIGHBOURS)
    for stack in model.stacks:
        for repeat in range(stack.repeats):
            for block, kind in zip(stack.blocks, stack.unit):
                key, step_key, block_key = jax.random.split(key, 3)
                if kind == "decode":
                    steps = np.array(list(itertools.islice(neighbours, block.heads)))
                else:
                    steps = jax.random.uniform(step_key, (block.heads, 3), minval=-0.5, maxval=0.5)
                layer = (repeat,) if stack.repeats > 1 else ()
                _start_block(block, layer, steps * spacing[None], model.grid, block_key)


def code_looks(codebook: jax.Array, width: int, key: jax.Array) -> jax.Array:
    """Random projections of the codes' embeddings [V, E]: float32 [V, D] with entries of mean
    square 1.

    Every component is divided by the root of its spread: raised a little where few codes differ.
    """
    centred = codebook - codebook.mean(axis=0, keepdims=True)
    evened = centred / jnp.sqrt(centred.std(axis=0, keepdims=True) + 1e-6)
    projected = evened @ jax.random.normal(key, (codebook.shape[1], width))
    return projected / jnp.maximum(jnp.sqrt(jnp.mean(projected**2)), 1e-6)


def _start_block(
    block: Block, layer: tuple[int, ...], steps: jax.Array, grid: rotary.Grid, key: jax.Array
) -> None:
    """Sets one layer of a (stacked) block; `steps` [K, 3] are the displacements of its heads, in
    cells.
    """

    def put(param: nnx.Param, value: jax.Array) -> None:
        param[...] = param[...].at[layer].set(value)

    width = block.query.kernel.shape[-1]
    gains = (
        (block.query, QUERY_KEY_GAIN),
        (block.key, QUERY_KEY_GAIN),
        (block.mlp_in, MLP_IN_GAIN),
        (block.mlp_out, MLP_OUT_GAIN),
    )
    value_key, *keys = jax.random.split(key, 1 + len(gains))
    for (linear, gain), linear_key in zip(gains, keys):
        shape = linear.kernel.shape[-2:]
        put(linear.kernel, gain * shape[0] ** -0.5 * jax.random.normal(linear_key, shape))
    orthogonal = jax.nn.initializers.orthogonal()(value_key, (width, width))
    put(block.value.kernel, orthogonal)
    put(block.output.kernel, orthogonal.T)

    speeds = rotary.frequencies(grid, width // block.heads)  # [Dh / 2, 3]
    turned = (
        PEAK * (speeds != 0).any(axis=1)[None]
    )  # [1, Dh / 2]; a pair that is not turned says nothing of places
    angles = steps @ speeds.T  # [K, Dh / 2]
    put(
        block.key.bias,
        np.tile(np.concatenate([turned, np.zeros_like(turned)], axis=1)[0], block.heads),
    )
    put(
        block.query.bias,
        jnp.concatenate([turned * jnp.cos(angles), turned * jnp.sin(angles)], axis=1).reshape(-1),
    )
