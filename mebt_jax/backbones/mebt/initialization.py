"""The "local" starting values: every head attends to a cell of its own nearby, and tokens with
similar codebook entries have similar embeddings.

The official start is small noise everywhere. With it attention first learns averages over the clip
and only after very many steps what lies where. Here a head starts with a displacement, in the
biases of its query and key: with rotary positions these biases alone make a kernel over positions
that peaks where the key lies that far from the query. Values pass through unchanged (value and
output start as an orthogonal matrix and its transpose, after Trockman and Kolter 2023), so the last
layers see from the start which tokens surround a target. benchmarks/RESULTS.md has what this gains.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mebt_jax.backbones.mebt.block import Block
from mebt_jax.nn import rotary

# Size of the biases: the scores at the peak are higher than those one cell away by about 6.
PEAK = 3.0
# Standard deviation of the matrices times the square root of their inputs: at first content weighs
# little in the scores.
QUERY_KEY_GAIN, MLP_UP_GAIN, MLP_DOWN_GAIN = 0.1, 0.5, 0.2
LATENT_NOISE = 0.3  # tells latents apart, beside their positions
CODEBOOK_SHARE = 0.8  # of a token embedding's variance that comes from the token's codebook entry
# Displacements along (t, h, w), the nearest first and those in time before those in space.
NEIGHBOURS = sorted(
    itertools.product((-1, 0, 1), repeat=3), key=lambda step: (sum(map(abs, step)), -abs(step[0]))
)[1:]


def start_locally(model: Any, codebook: jax.Array, key: jax.Array) -> None:
    """Overwrites the starting values of a new MeBT with rotary positions; can be jitted.

    Args:
        model: a `MeBT`.
        codebook: embeddings [V, E] of the tokens.
        key: random key.
    """
    num_latents, width = model.latents.shape
    projection_key, token_key, mask_key, shared_key, latent_key, key = jax.random.split(key, 6)
    projected = project_codebook(codebook, width, projection_key)  # [V, D]
    noise = jax.random.normal(token_key, projected.shape)
    model.token_embedding[...] = (
        CODEBOOK_SHARE**0.5 * projected + (1 - CODEBOOK_SHARE) ** 0.5 * noise
    )
    model.head.kernel[...] = model.head.kernel[...] + 0.02 * projected.T
    model.mask_embedding[...] = jax.random.normal(mask_key, (width,))
    shared = jax.random.normal(shared_key, (1, width))
    model.latents[...] = shared + LATENT_NOISE * jax.random.normal(latent_key, (num_latents, width))

    spacing = np.array(model.grid) / num_latents ** (1 / 3)  # of the latents, in cells
    neighbours = itertools.cycle(NEIGHBOURS)
    for stack in model.stacks:
        for repeat in range(stack.repeats):
            for block, kind in zip(stack.blocks, stack.unit):
                key, step_key, block_key = jax.random.split(key, 3)
                heads = block.attention.heads
                if kind == "decode":
                    steps = np.array(list(itertools.islice(neighbours, heads)))
                else:
                    steps = jax.random.uniform(step_key, (heads, 3), minval=-0.5, maxval=0.5)
                layer = (repeat,) if stack.repeats > 1 else ()
                _start_block(block, layer, steps * spacing[None], model.grid, block_key)


def project_codebook(codebook: jax.Array, width: int, key: jax.Array) -> jax.Array:
    """Random projections of the codebook [V, E]: float32 [V, D] with entries of mean square 1.

    Every component is divided by the root of its standard deviation, so that components in which
    few entries differ count for more than their variance.
    """
    centred = codebook - codebook.mean(axis=0, keepdims=True)
    evened = centred / jnp.sqrt(centred.std(axis=0, keepdims=True) + 1e-6)
    projected = evened @ jax.random.normal(key, (codebook.shape[1], width))
    return projected / jnp.maximum(jnp.sqrt(jnp.mean(projected**2)), 1e-6)


def _start_block(
    block: Block, layer: tuple[int, ...], steps: jax.Array, grid: rotary.Grid, key: jax.Array
) -> None:
    """Sets one layer of a (stacked) block; `steps` [K, 3] displace its heads, in cells."""

    def put(param: nnx.Param, value: jax.Array) -> None:
        param[...] = param[...].at[layer].set(value)

    attention, mlp = block.attention, block.mlp
    width = attention.query.kernel.shape[-1]
    gains = (
        (attention.query, QUERY_KEY_GAIN),
        (attention.key, QUERY_KEY_GAIN),
        (mlp.up_proj, MLP_UP_GAIN),
        (mlp.down_proj, MLP_DOWN_GAIN),
    )
    value_key, *keys = jax.random.split(key, 1 + len(gains))
    for (linear, gain), linear_key in zip(gains, keys):
        shape = linear.kernel.shape[-2:]
        put(linear.kernel, gain * shape[0] ** -0.5 * jax.random.normal(linear_key, shape))
    orthogonal = jax.nn.initializers.orthogonal()(value_key, (width, width))
    put(attention.value.kernel, orthogonal)
    put(attention.output.kernel, orthogonal.T)

    frequencies = rotary.frequencies(grid, width // attention.heads)  # [Dh / 2, 3]
    # A pair that is not rotated says nothing of positions, so it gets no bias.
    rotated = PEAK * (frequencies != 0).any(axis=1)[None]  # [1, Dh / 2]
    angles = steps @ frequencies.T  # [K, Dh / 2]
    key_bias = np.concatenate([rotated, np.zeros_like(rotated)], axis=1)[0]  # [Dh]
    put(attention.key.bias, np.tile(key_bias, attention.heads))
    query_bias = [rotated * jnp.cos(angles), rotated * jnp.sin(angles)]
    put(attention.query.bias, jnp.concatenate(query_bias, axis=1).reshape(-1))
