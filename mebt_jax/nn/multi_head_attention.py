"""Multi-head attention as a layer: projections, rotary positions, sharding."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mebt_jax.nn.attention import KeyValue, attend
from mebt_jax.nn.linear import linear
from mebt_jax.nn.rotary import rotate
from mebt_jax.runtime.sharding import constrain


class MultiHeadAttention(nnx.Module):
    """Attention from [B, Q, D] query tokens to any number of sets of key-value tokens.

    Keys and values are projected by a method of their own, so that they can be cached.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dtype: jnp.dtype,
        *,
        implementation: str = "auto",
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.implementation = implementation
        self.dropout_rate = dropout_rate
        self.query = linear(width, width, dtype, rngs)
        self.key = linear(width, width, dtype, rngs)
        self.value = linear(width, width, dtype, rngs)
        self.output = linear(width, width, dtype, rngs)

    def project_kv(
        self, x: jax.Array, valid: jax.Array | None, angles: jax.Array | None
    ) -> KeyValue:
        """Keys and values of normed tokens [B, S, D] with rotary angles [B, S, Dh / 2] or None."""
        key = self._split_heads(checkpoint_name(self.key(x), "key"), angles)
        value = self._split_heads(checkpoint_name(self.value(x), "value"))
        return KeyValue(key, value, valid)

    def __call__(
        self,
        x: jax.Array,
        key_values: Sequence[KeyValue],
        angles: jax.Array | None,
        *,
        all_gather: str,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Attention output [B, Q, D] of normed query tokens.

        Args:
            x: [B, Q, D].
            key_values: from `project_kv`.
            angles: rotary angles [B, Q, Dh / 2] of the queries, or None.
            all_gather: the side that every device gets whole where tokens are split over devices,
                "query" or "kv"; the other side stays split.
            dropout_key: random key for the attention weights; None is deterministic.
        """
        query = self._split_heads(checkpoint_name(self.query(x), "query"), angles)
        if all_gather == "query":
            query = constrain(query, "batch", None, "heads", None)
        else:
            key_values = [
                kv._replace(
                    key=constrain(kv.key, "batch", None, "heads", None),
                    value=constrain(kv.value, "batch", None, "heads", None),
                )
                for kv in key_values
            ]
        attended = attend(
            query,
            key_values,
            implementation=self.implementation,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )  # [B, Q, K, Dh]
        attended = constrain(attended, "batch", "tokens", "heads", None)
        return checkpoint_name(self.output(attended.reshape(x.shape)), "attention_output")

    def _split_heads(self, x: jax.Array, angles: jax.Array | None = None) -> jax.Array:
        """[B, S, D] -> [B, S, K, Dh], rotated by the angles if there are any."""
        split = x.reshape(*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        split = constrain(split, "batch", "tokens", "heads", None)
        return split if angles is None else rotate(split, angles)
