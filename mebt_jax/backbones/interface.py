"""What a backbone is: a Flax module that knows nothing of training, mask schedules or samplers.

A masked backbone predicts the tokens at some positions of a clip from the tokens at others.
`methods/masked` trains it and draws clips with it. A new one subclasses `MaskedBackbone` and
becomes an entry of `backbones.BACKBONES`.
"""

from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.nn.rotary import Grid
from mebt_jax.runtime.sharding import constrain, is_sharded, platform

# Of the head, in `logits_in_chunks`.
VOCABULARY_CHUNK = 2048


class TokenGrid(NamedTuple):
    """What a backbone has to know of the tokens of a clip."""

    vocab_size: int  # V
    grid: Grid  # (T, H, W)
    codebook: jax.Array | None = None  # [V, E] embeddings, for backbones that start from them


class MaskedTokens(NamedTuple):
    """What a masked backbone sees. Positions are flat (t, h, w) indices of the whole clip."""

    context_tokens: jax.Array  # int32 [B, C]; C may be 0
    context_positions: jax.Array  # int32 [B, C]
    context_valid: jax.Array  # bool [B, C]; padding changes nothing for valid tokens
    target_positions: jax.Array  # int32 [B, M]
    target_valid: jax.Array  # bool [B, M]


class Slots(NamedTuple):
    """Tokens of a clip in the order in which a sampler keeps them, one per slot."""

    tokens: jax.Array  # int32 [B, S]
    positions: jax.Array  # int32 [B, S]
    visible: jax.Array  # bool [B, S], which slots are contexts of this pass


class MaskedBackbone(nnx.Module):
    """Predicts target tokens from context tokens; subclasses write `create` and `__call__`.

    Attributes:
        Config: frozen dataclass of `config.backbone` for this kind.
        CONDITIONS: fields of a batch that the backbone can be conditioned on, see `data`.
        head: linear layer [D, V] without bias, from hidden states to logits.
        dtype: compute type.
    """

    Config: ClassVar[type]
    CONDITIONS: ClassVar[tuple[str, ...]] = ()
    head: nnx.Linear
    dtype: jnp.dtype

    @classmethod
    def check_mesh(cls, config: Any, mesh: Mesh) -> None:
        """Raises UserError if the backbone cannot be split over the mesh."""

    @classmethod
    def create(cls, config: Any, tokens: TokenGrid, key: jax.Array) -> Self:
        """A model at its starting values; can be jitted."""
        raise NotImplementedError

    def __call__(
        self, tokens: MaskedTokens, condition: Any = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states [B, M, D] of the targets, in the compute type.

        Args:
            tokens: contexts and targets.
            condition: dict of the batch's fields that CONDITIONS names, or None.
            key: random key for dropout; None is deterministic.
        """
        raise NotImplementedError

    def head_kernel(self) -> jax.Array:
        """The head [D, V] in the compute type, to be gathered once before a loop over targets."""
        return constrain(self.head.kernel[...], None, "vocabulary").astype(self.dtype)

    def logits(self, hidden: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """Logits [B, m, V], always float32, of hidden states [B, m, D].

        `kernel` is `head_kernel()`, where the caller has it already.
        """
        kernel = self.head_kernel() if kernel is None else kernel
        logits = jnp.einsum(
            "bmd,dv->bmv", hidden.astype(self.dtype), kernel, preferred_element_type=jnp.float32
        )
        return constrain(logits, "batch", "tokens", "vocabulary")

    def logits_in_chunks(self, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        """`logits`, but on a CPU for a part of the vocabulary at a time.

        A product on a CPU first copies its whole right side [D, V].
        """
        vocab_size = kernel.shape[1]
        if platform() != "cpu" or is_sharded("vocabulary") or vocab_size % VOCABULARY_CHUNK:
            return self.logits(hidden, kernel)

        def chunk(start: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(kernel, start, VOCABULARY_CHUNK, axis=1)
            return self.logits(hidden, part)

        starts = jnp.arange(0, vocab_size, VOCABULARY_CHUNK)
        chunks = jax.lax.map(chunk, starts)  # [V / n, B, m, n]
        return jnp.moveaxis(chunks, 0, 2).reshape(*hidden.shape[:2], vocab_size)

    # ---- context cache: by default nothing is cached, and every pass runs the whole model --------

    def init_cache(
        self, tokens: jax.Array, positions: jax.Array, condition: Any = None, *, num_slots: int
    ) -> Any:
        """Cache of `num_slots` slots, of which the first hold tokens int32 [B, S] at positions.

        A pytree of arrays [B, ...]; () where the backbone can cache nothing.
        """
        return ()

    def update_cache(
        self, cache: Any, slots: jax.Array, tokens: jax.Array, positions: jax.Array
    ) -> Any:
        """The cache after the tokens int32 [B, S] at positions came into the slots int32 [B, S].

        Slots out of range are left out.
        """
        return cache

    def from_cache(
        self,
        cache: Any,
        slots: Slots,
        target_positions: jax.Array,
        target_valid: jax.Array,
        condition: Any = None,
        *,
        num_contexts: int,
        num_logits: int,
    ) -> jax.Array:
        """What `__call__` gives for the first `num_logits` targets, [B, num_logits, D].

        Args:
            cache: of at least S slots.
            slots: the tokens that are visible are the contexts.
            target_positions: int32 [B, M]; those whose logits are needed come first.
            target_valid: bool [B, M].
            condition: see `__call__`.
            num_contexts: C, at least the largest number of visible slots of a clip.
            num_logits: targets whose hidden states are needed.
        """
        order = jnp.argsort(~slots.visible, axis=1, stable=True)[:, :num_contexts]  # [B, C]
        contexts = (jnp.take_along_axis(array, order, axis=1) for array in slots)
        tokens = MaskedTokens(*contexts, target_positions, target_valid)
        return self(tokens, condition)[:, :num_logits]
