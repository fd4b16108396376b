"""The one transformer block of MeBT and the six attention patterns in which it is used.

Latents, contexts and targets are three streams of tokens. A kind of block says which streams are
the queries and which are the keys and values (paper section 3.2; Table 3 for `full`). Parameters
have the same shapes for every kind. `latent_encoder` and `linear_decoder` name the kinds that the
paper's equations 2 and 3 are made of; `stack` runs blocks in order.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.backbones.mebt import latent_encoder, linear_decoder
from mebt_jax.backbones.mebt.attention_pattern import JOINT_PATTERNS
from mebt_jax.backbones.mebt.mebt_config import MeBTConfig
from mebt_jax.nn.attention import KeyValue, dropout
from mebt_jax.nn.linear import Mlp, layer_norm
from mebt_jax.nn.multi_head_attention import MultiHeadAttention
from mebt_jax.runtime.sharding import constrain

# How streams attend to each other, by kind of block.
ATTENTION_PATTERNS = {**latent_encoder.PATTERNS, **linear_decoder.PATTERNS, **JOINT_PATTERNS}


class Block(nnx.Module):
    """x = residual + attention(norm(x), norm(keys)), then x = x + mlp(norm(x)).

    Note: with the residual "normed_query" the attention's output is added to the *normalised*
    query, as in official gpt.py:180-185; with "query" to the query itself (plain pre-norm). One
    norm serves the query and the key-value tokens in both.
    """

    def __init__(self, config: MeBTConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.residual = config.residual
        self.dropout_rate = config.residual_dropout
        self.attention_norm = layer_norm(width, dtype, rngs)
        self.attention = MultiHeadAttention(
            width,
            config.heads,
            dtype,
            implementation=config.attention_implementation,
            dropout_rate=config.attention_dropout,
            rngs=rngs,
        )
        self.mlp_norm = layer_norm(width, dtype, rngs)
        self.mlp = Mlp(width, dtype, remat=config.remat != "none", rngs=rngs)

    def project_kv(
        self, tokens: jax.Array, valid: jax.Array | None, angles: jax.Array | None
    ) -> KeyValue:
        """Keys and values of tokens [B, S, D] with rotary angles [B, S, Dh / 2] or None."""
        return self.attention.project_kv(self.attention_norm(tokens), valid, angles)

    def __call__(
        self,
        queries: jax.Array,
        key_values: Sequence[KeyValue],
        angles: jax.Array | None,
        *,
        all_gather: str,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Updated query tokens [B, Q, D], which have rotary angles [B, Q, Dh / 2] or None.

        `all_gather` and the rest are those of `MultiHeadAttention`.
        """
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        attention_key, output_key, mlp_key = keys
        normed = self.attention_norm(queries)
        attended = self.attention(
            normed, key_values, angles, all_gather=all_gather, dropout_key=attention_key
        )
        residual = normed if self.residual == "normed_query" else queries
        x = residual + dropout(attended, self.dropout_rate, output_key)
        x = constrain(x, "batch", "tokens", None)
        x = x + dropout(self.mlp(self.mlp_norm(x)), self.dropout_rate, mlp_key)
        return constrain(x, "batch", "tokens", None)


def apply_block(
    block: Block,
    kind: str,
    tokens: dict[str, jax.Array],
    valid: dict[str, jax.Array],
    angles: dict[str, jax.Array] | None,
    dropout_key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Runs one block on the streams.

    Args:
        block: its parameters.
        kind: a key of ATTENTION_PATTERNS.
        tokens: "latents" [B, L, D], "contexts" [B, C, D], "targets" [B, M, D].
        valid: "contexts" [B, C] bool, "targets" [B, M] bool; latents are always valid.
        angles: rotary angles of each stream, [B, S, Dh / 2] (`MeBT.angles`), or None.
        dropout_key: random key of this layer; None is deterministic.

    Returns:
        The streams, those of the queries updated.
    """
    pattern = ATTENTION_PATTERNS[kind]
    stream_angles = dict.fromkeys(tokens) if angles is None else angles
    key_values = [
        block.project_kv(tokens[name], valid.get(name), stream_angles[name])
        for name in pattern.keys
    ]
    dropout_keys = dict.fromkeys(pattern.queries)
    if dropout_key is not None:
        split = jax.random.split(dropout_key, len(pattern.queries))
        dropout_keys = dict(zip(pattern.queries, split))
    return tokens | {
        name: block(
            tokens[name],
            key_values,
            stream_angles[name],
            all_gather=gathered_side(name),
            dropout_key=dropout_keys[name],
        )
        for name in pattern.queries
    }


def gathered_side(queries: str) -> str:
    """The side of the attention that is sent to every device: the latents, since they are few.

    So no layer of MeBT sends more than its latents, however many tokens there are. In `full` and
    `maskgit` blocks tokens attend to tokens: these send the keys and values of all of them.
    """
    return "query" if queries == "latents" else "kv"
