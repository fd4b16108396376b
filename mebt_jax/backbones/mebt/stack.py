"""Runs the layers of the config in order: repeated units as one `lax.scan`, single layers directly.

Each repeated unit, such as (encode, latent) x 6, has its own stacked parameters. One stack for all
layers would be sliced per unit, and the gradient of a slice is a padded copy of the whole stack.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.backbones.mebt.block import ATTENTION_PATTERNS, Block, apply_block, gathered_side
from mebt_jax.backbones.mebt.mebt_config import MeBTConfig
from mebt_jax.nn.attention import KeyValue
from mebt_jax.runtime.sharding import constrain, gather

# What the forward pass saves for the backward pass, which recomputes the rest; "none" does not
# recompute at all. "save_query_projections" saves the linear layers of the query tokens, not the
# keys and values, which take more memory for what they save (benchmarks/RESULTS.md).
# "dots_saveable" saves all linear layers, but no attention scores: there are queries times keys.
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": None,
    "save_query_projections": jax.checkpoint_policies.save_only_these_names(
        "query", "attention_output", "mlp_hidden", "mlp_output"
    ),
    "dots_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# Keys and values [B, repeats, slots, K, Dh] of the contexts for every encode block of a unit.
StackCache = tuple[tuple[jax.Array, jax.Array], ...]


def find_units(layers: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Splits the layers into (unit, repeats) so that the units together hold the fewest blocks.

    Official checkpoints have layers in many orders, so the units are searched for, by dynamic
    programming over the first layer. Only repeated units are longer than one layer; of equal
    splits, the one whose first unit covers most layers wins. ("encode", "latent", "encode",
    "latent", "decode") gives ((("encode", "latent"), 2), (("decode",), 1)).
    """
    best = {len(layers): (0, ())}  # start -> (blocks to compile from there on, their units)
    for start in reversed(range(len(layers))):
        options = []
        rest_length = len(layers) - start
        for length in range(1, rest_length + 1):
            unit = layers[start : start + length]
            for repeats in range(1, rest_length // length + 1):
                if layers[start : start + repeats * length] != unit * repeats:
                    break
                if repeats > 1 or length == 1:
                    blocks, rest = best[start + repeats * length]
                    options.append((length + blocks, ((unit, repeats), *rest)))
        best[start] = min(
            options,
            key=lambda option: (option[0], len(option[1]), -len(option[1][0][0]) * option[1][0][1]),
        )
    return best[0][1]


class Stack(nnx.Module):
    """One unit of blocks, repeated; if repeated, every parameter has a leading axis [repeats]."""

    def __init__(self, config: MeBTConfig, unit: tuple[str, ...], repeats: int, *, rngs: nnx.Rngs):
        self.unit = unit
        self.repeats = repeats
        self.remat = config.remat

        def create(rngs: nnx.Rngs) -> nnx.List:
            return nnx.List([Block(config, rngs=rngs) for _ in unit])

        if repeats > 1:
            create = nnx.split_rngs(splits=repeats)(nnx.vmap(create, in_axes=0, out_axes=0))
        self.blocks = create(rngs)

    def __call__(
        self,
        tokens: dict[str, jax.Array],
        valid: dict[str, jax.Array],
        angles: dict[str, jax.Array] | None,
        dropout_keys: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Streams in, streams out (`block.apply_block`); dropout_keys [repeats * len(unit)]."""
        graphdef, params = nnx.split(self.blocks)
        updated = sorted({name for kind in self.unit for name in ATTENTION_PATTERNS[kind].queries})
        # Streams that stay the same are closed over: in the carry of the scan, the backward pass
        # would save a copy of them per repeat.
        fixed = {name: array for name, array in tokens.items() if name not in updated}

        def run_unit(carry: dict[str, jax.Array], layer: Any) -> tuple[dict[str, jax.Array], None]:
            params, keys = layer
            streams = fixed | carry
            blocks = nnx.merge(graphdef, gather(params))
            for i, (block, kind) in enumerate(zip(blocks, self.unit)):
                key = None if keys is None else keys[i]
                streams = apply_block(block, kind, streams, valid, angles, key)
            return {name: streams[name] for name in updated}, None

        if self.remat != "none":
            run_unit = jax.checkpoint(
                run_unit, policy=REMAT_POLICIES[self.remat], prevent_cse=self.repeats == 1
            )
        carry = {name: tokens[name] for name in updated}
        if self.repeats == 1:
            carry, _ = run_unit(carry, (params, dropout_keys))
        else:
            keys = dropout_keys
            if keys is not None:
                keys = keys.reshape(self.repeats, len(self.unit))
            carry, _ = jax.lax.scan(run_unit, carry, (params, keys))
        return fixed | carry

    def context_key_values(self, contexts: jax.Array, angles: jax.Array | None) -> StackCache:
        """Keys and values of embedded contexts [B, S, D] for every encode block of the unit."""
        graphdef, params = nnx.split(self.blocks)

        def unit_key_values(params: nnx.State) -> tuple[tuple[jax.Array, jax.Array], ...]:
            blocks = nnx.merge(graphdef, gather(params))
            key_values = (
                block.project_kv(contexts, None, angles)
                for block, kind in zip(blocks, self.unit)
                if kind == "encode"
            )
            return tuple((kv.key, kv.value) for kv in key_values)

        if self.repeats == 1:
            return jax.tree.map(lambda x: x[:, None], unit_key_values(params))
        return jax.vmap(unit_key_values, out_axes=1)(params)

    def from_cache(
        self,
        cache: StackCache,
        context_valid: jax.Array,
        tokens: dict[str, jax.Array],
        valid: dict[str, jax.Array],
        angles: dict[str, jax.Array] | None,
    ) -> dict[str, jax.Array]:
        """Runs the unit on latents [B, L, D] and targets [B, M, D] with cached contexts.

        Args:
            cache: from `context_key_values`, with at least C slots.
            context_valid: [B, C] bool, which of the first C slots are contexts.
            tokens, valid, angles: see `block.apply_block`, without the contexts.
        """
        graphdef, params = nnx.split(self.blocks)
        contexts = context_valid.shape[1]
        latent_angles = None if angles is None else angles["latents"]

        def run_unit(tokens: dict[str, jax.Array], layer: Any) -> tuple[dict[str, jax.Array], None]:
            params, index = layer
            cached = iter(cache)
            for block, kind in zip(nnx.merge(graphdef, gather(params)), self.unit):
                if kind != "encode":
                    tokens = apply_block(block, kind, tokens, valid, angles)
                    continue
                # One layer at a time is cut out of the cache: as an operand of the scan all layers
                # would be copied.
                key, value = (
                    constrain(
                        jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)[
                            :, :contexts
                        ],
                        "batch",
                        "tokens",
                        "heads",
                        None,
                    )
                    for x in next(cached)
                )
                latents = block(
                    tokens["latents"],
                    [KeyValue(key, value, context_valid)],
                    latent_angles,
                    all_gather=gathered_side("latents"),
                )
                tokens = tokens | {"latents": latents}
            return tokens, None

        if self.repeats == 1:
            return run_unit(tokens, (params, jnp.int32(0)))[0]
        return jax.lax.scan(run_unit, tokens, (params, jnp.arange(self.repeats)))[0]
