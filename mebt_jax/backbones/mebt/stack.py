"""Runs the layers of the config in order: repeated units as one `lax.scan`, single layers directly.

Each repeated unit, such as (encode, latent) x 6, has its own stacked parameters. One stack for all
layers would be sliced per unit, and the gradient of a slice is a padded copy of the whole stack.
"""

import jax
from flax import nnx

from mebt_jax.backbones.mebt.block import WIRING, Block, apply_block
from mebt_jax.config import TransformerConfig
from mebt_jax.runtime.mesh import gather

# What the backward pass need not recompute; None is nothing. "asking" keeps the linear layers of
# the tokens that ask, not the keys and values of those that are asked, which take more memory for
# what they save (benchmarks/RESULTS.md). "dots" keeps all the linear layers, not the attention
# scores, whose size is that of queries times keys.
REMAT_POLICIES = {
    "block": None,
    "asking": jax.checkpoint_policies.save_only_these_names(
        "query", "attended", "hidden", "answer"
    ),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def find_units(layers: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Splits the layers into (unit, repeats) so that the units together hold the fewest blocks.

    Only repeated units are longer than one layer; of equal splits, the one whose first unit covers
    most counts. ("encode", "latent", "encode", "latent", "decode") gives ((("encode", "latent"),
    2), (("decode",), 1)).
    """
    best = {len(layers): (0, ())}  # start -> (blocks to compile from there on, the units)
    for start in reversed(range(len(layers))):
        options = []
        left = len(layers) - start
        for length in range(1, left + 1):
            unit = layers[start : start + length]
            for repeats in range(1, left // length + 1):
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
    """One unit of blocks, repeated; with more than one repeat every parameter has a leading axis
    [repeats, ...].
    """

    def __init__(
        self, config: TransformerConfig, unit: tuple[str, ...], repeats: int, *, rngs: nnx.Rngs
    ):
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
        """Streams in, streams out (see `apply_block`); dropout_keys [repeats * len(unit)] or
        None.
        """
        graphdef, params = nnx.split(self.blocks)
        changing = sorted({name for kind in self.unit for name in WIRING[kind][0]})
        # Streams that stay the same are closed over: in the carry, the backward pass would keep a
        # copy per repeat.
        fixed = {name: array for name, array in tokens.items() if name not in changing}

        def run_unit(carry, params_and_keys):
            params, keys = params_and_keys
            streams = fixed | carry
            for i, (block, kind) in enumerate(zip(nnx.merge(graphdef, gather(params)), self.unit)):
                streams = apply_block(
                    block, kind, streams, valid, angles, None if keys is None else keys[i]
                )
            return {name: streams[name] for name in changing}, None

        if self.remat != "none":
            run_unit = jax.checkpoint(
                run_unit, policy=REMAT_POLICIES[self.remat], prevent_cse=self.repeats == 1
            )
        carry = {name: tokens[name] for name in changing}
        if self.repeats == 1:
            carry, _ = run_unit(carry, (params, dropout_keys))
        else:
            keys = (
                None if dropout_keys is None else dropout_keys.reshape(self.repeats, len(self.unit))
            )
            carry, _ = jax.lax.scan(run_unit, carry, (params, keys))
        return fixed | carry
