"""MeBT: predicts target tokens from context tokens through L latents (paper section 3.2)."""

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.backbones.interface import MaskedBackbone, MaskedTokens, Slots, TokenGrid
from mebt_jax.backbones.mebt.initialization import start_locally
from mebt_jax.backbones.mebt.mebt_config import MeBTConfig
from mebt_jax.backbones.mebt.stack import Stack, StackCache, find_units
from mebt_jax.nn.attention import dropout
from mebt_jax.nn.linear import layer_norm, linear
from mebt_jax.nn.rotary import latent_angles, token_angles
from mebt_jax.runtime.mesh import check_heads
from mebt_jax.runtime.sharding import constrain, gather

# Slots are not split over devices: the first C of them, which are the keys and values, would lie on
# a few devices. What is computed with them is split.
Cache = tuple[StackCache, ...]


class MeBT(MaskedBackbone):
    """Embeddings, the stacks of `config.layers`, a final norm and the head.

    Note: as in official transformer.py:139 there is one table of absolute positions over the flat
    (t, h, w) index of a whole clip, also for the tokens of a shorter interval.
    """

    Config = MeBTConfig

    def __init__(self, config: MeBTConfig, tokens: TokenGrid, *, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(config.dtype)
        self.grid = tokens.grid
        self.head_width = config.width // config.heads
        self.rotary = config.positions == "rotary"
        self.num_layers = len(config.layers)
        self.embedding_dropout = config.embedding_dropout
        self.uses_dropout = 0 < max(
            config.embedding_dropout, config.residual_dropout, config.attention_dropout
        )

        def table(*shape: int) -> nnx.Param:
            return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, jnp.float32))

        self.token_embedding = table(tokens.vocab_size, config.width)
        self.position_embedding = table(math.prod(tokens.grid), config.width)
        self.mask_embedding = table(config.width)
        self.latents = table(config.num_latents, config.width)
        self.stacks = nnx.List(
            [Stack(config, unit, repeats, rngs=rngs) for unit, repeats in find_units(config.layers)]
        )
        self.final_norm = layer_norm(config.width, self.dtype, rngs)
        self.head = linear(config.width, tokens.vocab_size, self.dtype, rngs, bias=False)

    @classmethod
    def check_mesh(cls, config: MeBTConfig, mesh: Mesh) -> None:
        """Heads are split over the tensor axis."""
        check_heads(mesh, config.heads)

    @classmethod
    def create(cls, config: MeBTConfig, tokens: TokenGrid, key: jax.Array) -> Self:
        """A model at its starting values; the local start needs the tokens' codebook."""
        model = cls(config, tokens, rngs=nnx.Rngs(key))
        if config.initialization == "local" and tokens.codebook is not None:
            start_locally(model, tokens.codebook, jax.random.fold_in(key, 1))
        return model

    def __call__(
        self, tokens: MaskedTokens, condition: Any = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """See `MaskedBackbone`; padded targets get finite values without meaning."""
        key = key if self.uses_dropout else None
        streams = self._embed(tokens, key)
        valid = {"contexts": tokens.context_valid, "targets": tokens.target_valid}
        angles = self.angles(contexts=tokens.context_positions, targets=tokens.target_positions)
        layer_keys = None
        if key is not None:
            layer_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.num_layers))
        start = 0
        for stack in self.stacks:
            end = start + stack.repeats * len(stack.unit)
            stack_keys = None if layer_keys is None else layer_keys[start:end]
            streams = stack(streams, valid, angles, stack_keys)
            start = end
        return self.final_norm(streams["targets"])

    # ---- context cache ---------------------------------------------------------------------------

    @property
    def caches_contexts(self) -> bool:
        """Whether the contexts stay as they are from layer to layer: no layer but `maskgit` updates
        them, so their keys and values follow from their tokens and positions alone.
        """
        return not any("maskgit" in stack.unit for stack in self.stacks)

    def init_cache(
        self, tokens: jax.Array, positions: jax.Array, condition: Any = None, *, num_slots: int
    ) -> Cache:
        """Keys and values of the contexts for every encode block; see `MaskedBackbone`."""
        if not self.caches_contexts:
            return ()
        free = num_slots - tokens.shape[1]
        padding = ((0, 0), (0, 0), (0, free), (0, 0), (0, 0))
        return jax.tree.map(lambda x: jnp.pad(x, padding), self._key_values(tokens, positions))

    def update_cache(
        self, cache: Cache, slots: jax.Array, tokens: jax.Array, positions: jax.Array
    ) -> Cache:
        """See `MaskedBackbone`."""
        if not self.caches_contexts:
            return ()
        write = jax.vmap(lambda old, row, new: old.at[:, row].set(new, mode="drop"))
        new = self._key_values(tokens, positions)
        return jax.tree.map(lambda old, new: write(old, slots, new), cache, new)

    def from_cache(
        self,
        cache: Cache,
        slots: Slots,
        target_positions: jax.Array,
        target_valid: jax.Array,
        condition: Any = None,
        *,
        num_contexts: int,
        num_logits: int,
    ) -> jax.Array:
        """See `MaskedBackbone`; equals the plain model's result to 1e-5.

        The last decode block runs for the first `num_logits` targets alone, since no other token
        sees its result.
        """
        if not self.caches_contexts:
            return super().from_cache(
                cache,
                slots,
                target_positions,
                target_valid,
                condition,
                num_contexts=num_contexts,
                num_logits=num_logits,
            )
        streams = self._embed_latents_and_targets(target_positions)
        valid = {"targets": target_valid}
        angles = self.angles(targets=target_positions)
        for stack, stack_cache in zip(self.stacks, cache):
            if stack is self.stacks[-1] and stack.unit == ("decode",) and stack.repeats == 1:
                streams = streams | {"targets": streams["targets"][:, :num_logits]}
                valid = {"targets": target_valid[:, :num_logits]}
                if angles is not None:
                    angles = angles | {"targets": angles["targets"][:, :num_logits]}
            streams = stack.from_cache(stack_cache, slots.visible, streams, valid, angles)
        return self.final_norm(streams["targets"][:, :num_logits])

    def _key_values(self, tokens: jax.Array, positions: jax.Array) -> Cache:
        contexts = self._embed_contexts(tokens, positions)  # [B, S, D]
        angles = self.angles(contexts=positions)
        context_angles = None if angles is None else angles["contexts"]
        return tuple(stack.context_key_values(contexts, context_angles) for stack in self.stacks)

    # ---- embeddings ------------------------------------------------------------------------------

    def angles(self, **positions: jax.Array) -> dict[str, jax.Array] | None:
        """Rotary angles [B, S, Dh / 2] of streams at flat positions int32 [B, S], and of the
        latents; None where positions are only learned.
        """
        if not self.rotary:
            return None
        angles = {
            name: token_angles(stream, self.grid, self.head_width)
            for name, stream in positions.items()
        }
        batch = next(iter(positions.values())).shape[0]
        latents = latent_angles(self.latents.shape[0], self.grid, self.head_width)
        return angles | {"latents": jnp.broadcast_to(latents, (batch, *latents.shape))}

    def _embed(self, tokens: MaskedTokens, key: jax.Array | None) -> dict[str, jax.Array]:
        """The three streams before the first block: [B, L, D], [B, C, D], [B, M, D]."""
        rest = self._embed_latents_and_targets(tokens.target_positions)
        contexts = self._embed_contexts(tokens.context_tokens, tokens.context_positions)
        streams = {
            "latents": rest["latents"],
            "contexts": contexts,
            "targets": rest["targets"],
        }
        # Layers use fold_in(key, 0 .. layers - 1); the embeddings come after them.
        keys = (None,) * 3
        if key is not None:
            keys = jax.random.split(jax.random.fold_in(key, self.num_layers), 3)
        return {
            name: dropout(array, self.embedding_dropout, stream_key)
            for (name, array), stream_key in zip(streams.items(), keys)
        }

    def _embed_contexts(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Known tokens before the first block, [B, C, D], from int32 [B, C] and positions."""
        embedded = self._lookup("token_embedding", tokens)
        embedded = embedded + self._lookup("position_embedding", positions)
        return constrain(embedded.astype(self.dtype), "batch", "tokens", None)

    def _embed_latents_and_targets(self, target_positions: jax.Array) -> dict[str, jax.Array]:
        """Latents [B, L, D] and targets [B, M, D], for target positions int32 [B, M]."""
        targets = self.mask_embedding[...][None, None]
        targets = targets + self._lookup("position_embedding", target_positions)
        batch = target_positions.shape[0]
        latents = jnp.broadcast_to(self.latents[...], (batch, *self.latents.shape))
        streams = {"latents": latents, "targets": targets}
        return {
            name: constrain(tokens.astype(self.dtype), "batch", "tokens", None)
            for name, tokens in streams.items()
        }

    def _lookup(self, table: str, indices: jax.Array) -> jax.Array:
        """Rows [B, S, D] of a table; each device looks up its tokens in the whole table."""
        return gather(getattr(self, table)[...])[constrain(indices, "batch", "tokens")]
