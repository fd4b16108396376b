"""MeBT: predicts the codes of target positions from context tokens, through a fixed number of
latents (paper section 3.2).

`masking.split` makes the inputs, `loss` and the sampler turn the output into logits block by block.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.backbones.mebt.block import layer_norm, linear
from mebt_jax.backbones.mebt.stack import Stack, find_units
from mebt_jax.config import TransformerConfig
from mebt_jax.nn.attention import dropout
from mebt_jax.nn.rotary import Grid, latent_angles, token_angles
from mebt_jax.runtime.mesh import constrain, gather


class MeBT(nnx.Module):
    """Embeddings, the stacks of `config.layers`, a final norm and the head.

    Note: as in official transformer.py:139 there is one table of absolute positions over the flat
    (t, h, w) index of a whole clip, also for the tokens of a shorter interval.
    """

    def __init__(self, config: TransformerConfig, *, num_codes: int, grid: Grid, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(config.dtype)
        self.grid = grid
        self.head_width = config.width // config.heads
        self.rotary = config.flavour == "modern"
        self.num_layers = len(config.layers)
        self.embedding_dropout = config.embedding_dropout

        def table(*shape: int) -> nnx.Param:
            return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, jnp.float32))

        self.token_embedding = table(num_codes, config.width)
        self.position_embedding = table(math.prod(grid), config.width)
        self.mask_embedding = table(config.width)
        self.latents = table(config.latents, config.width)
        self.stacks = nnx.List(
            [Stack(config, unit, repeats, rngs=rngs) for unit, repeats in find_units(config.layers)]
        )
        self.final_norm = layer_norm(config.width, self.dtype, rngs)
        self.head = linear(config.width, num_codes, self.dtype, rngs, bias=False)

    def __call__(
        self,
        context_codes: jax.Array,
        context_positions: jax.Array,
        context_valid: jax.Array,
        target_positions: jax.Array,
        target_valid: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states of the targets, ready for `logits`.

        Args:
            context_codes: [B, C] int32 codes of the known tokens; C may be 0.
            context_positions: [B, C] int32 flat (t, h, w) indices.
            context_valid: [B, C] bool, False for padding, which changes nothing for valid tokens.
            target_positions: [B, M] int32 flat (t, h, w) indices of the tokens to predict.
            target_valid: [B, M] bool.
            key: random key for dropout; None is deterministic.

        Returns:
            [B, M, D] in the compute type; padded targets hold finite values without meaning.
        """
        tokens = self._embed(context_codes, context_positions, target_positions, key)
        valid = {"contexts": context_valid, "targets": target_valid}
        angles = self.angles(contexts=context_positions, targets=target_positions)
        layer_keys = None
        if key is not None:
            layer_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
                key, jnp.arange(self.num_layers)
            )
        start = 0
        for stack in self.stacks:
            end = start + stack.repeats * len(stack.unit)
            tokens = stack(tokens, valid, angles, None if key is None else layer_keys[start:end])
            start = end
        return self.final_norm(tokens["targets"])

    def head_kernel(self) -> jax.Array:
        """What `logits` multiplies with, [D, V] in the compute type: to be made once before a loop
        over blocks of targets.
        """
        return constrain(self.head.kernel[...], None, "codes").astype(self.dtype)

    def logits(self, hidden: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """Logits [B, m, V], always float32, of hidden states [B, m, D]; `kernel` is
        `head_kernel()`, where that is at hand.
        """
        kernel = self.head_kernel() if kernel is None else kernel
        logits = jnp.einsum(
            "bmd,dv->bmv", hidden.astype(self.dtype), kernel, preferred_element_type=jnp.float32
        )
        return constrain(logits, "batch", "tokens", "codes")

    def angles(self, **positions: jax.Array) -> dict[str, jax.Array] | None:
        """Angles [B, S, Dh / 2] of streams of tokens at flat positions int32 [B, S], and of the
        latents; None in `paper`.
        """
        if not self.rotary:
            return None
        angles = {
            name: token_angles(where, self.grid, self.head_width)
            for name, where in positions.items()
        }
        batch = next(iter(positions.values())).shape[0]
        latents = latent_angles(self.latents.shape[0], self.grid, self.head_width)
        return angles | {"latents": jnp.broadcast_to(latents, (batch, *latents.shape))}

    def embed_contexts(self, codes: jax.Array, positions: jax.Array) -> jax.Array:
        """Known tokens before the first block, from int32 [B, C] codes and flat positions: [B, C,
        D].
        """
        tokens = self._rows("token_embedding", codes) + self._rows("position_embedding", positions)
        return constrain(tokens.astype(self.dtype), "batch", "tokens", None)

    def embed_rest(self, target_positions: jax.Array) -> dict[str, jax.Array]:
        """Latents [B, L, D] and targets [B, M, D] before the first block, for targets at int32 [B,
        M] flat positions.
        """
        targets = self.mask_embedding[...][None, None] + self._rows(
            "position_embedding", target_positions
        )
        latents = jnp.broadcast_to(
            self.latents[...], (target_positions.shape[0], *self.latents.shape)
        )
        return {
            name: constrain(tokens.astype(self.dtype), "batch", "tokens", None)
            for name, tokens in (("latents", latents), ("targets", targets))
        }

    def _rows(self, table: str, indices: jax.Array) -> jax.Array:
        """Rows [B, S, D] of a table; each device looks up its own tokens in the whole table."""
        return gather(getattr(self, table)[...])[constrain(indices, "batch", "tokens")]

    def _embed(
        self,
        context_codes: jax.Array,
        context_positions: jax.Array,
        target_positions: jax.Array,
        key: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """The three streams before the first block: latents [B, L, D], contexts [B, C, D], targets
        [B, M, D].
        """
        rest = self.embed_rest(target_positions)
        tokens = {
            "latents": rest["latents"],
            "contexts": self.embed_contexts(context_codes, context_positions),
            "targets": rest["targets"],
        }
        # Layers use fold_in(key, 0 .. layers - 1); the embeddings come after them.
        keys = (
            (None,) * 3
            if key is None
            else jax.random.split(jax.random.fold_in(key, self.num_layers), 3)
        )
        return {
            name: dropout(array, self.embedding_dropout, stream_key)
            for (name, array), stream_key in zip(tokens.items(), keys)
        }
