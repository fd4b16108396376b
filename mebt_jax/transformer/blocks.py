"""The one transformer block of MeBT and the six ways of wiring it to the token streams.

Latents, contexts and targets are three streams of tokens. A kind of block says which streams ask and which are asked
(paper section 3.2, Table 3 for `full`); parameters have the same shapes for every kind. `stack` runs blocks in order.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.config import TransformerConfig
from mebt_jax.transformer.attention import attend, dropout
from mebt_jax.transformer.rotary import rotate

# kind -> (streams that ask and are rewritten, streams that are asked)
WIRING = {
    "encode": (("latents",), ("contexts",)),
    "latent": (("latents",), ("latents",)),
    "update": (("latents",), ("latents", "targets")),
    "decode": (("targets",), ("latents",)),
    "full": (("latents", "targets"), ("latents", "targets")),
    "maskgit": (("contexts", "targets"), ("contexts", "targets")),
}


class Block(nnx.Module):
    """Attention and MLP with residuals.

    Note: in the `paper` flavour one norm serves the asking and the asked tokens, and the residual is added to the
    *normalised* query, as in official gpt.py:180-185. `modern` adds it to the query itself, and turns queries and keys by the
    angles of their places (`rotary`); without angles nothing is turned.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.heads = config.heads
        self.flavour = config.flavour
        self.residual_dropout = config.residual_dropout
        self.attention_dropout = config.attention_dropout
        self.attention_norm = layer_norm(width, dtype, rngs)
        self.query = linear(width, width, dtype, rngs)
        self.key = linear(width, width, dtype, rngs)
        self.value = linear(width, width, dtype, rngs)
        self.output = linear(width, width, dtype, rngs)
        self.mlp_norm = layer_norm(width, dtype, rngs)
        self.mlp_in = linear(width, 4 * width, dtype, rngs)
        self.mlp_out = linear(4 * width, width, dtype, rngs)

    def keys_and_values(self, tokens: jax.Array, angles: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """What the asked tokens [B, S, D] with angles [B, S, Dh / 2] offer: key and value, [B, S, K, Dh] each."""
        normed = self.attention_norm(tokens)
        return self._split_heads(self.key(normed), angles), self._split_heads(self.value(normed))

    def __call__(
        self,
        asking: jax.Array,
        key: jax.Array,
        value: jax.Array,
        key_valid: jax.Array | None,
        angles: jax.Array | None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """New values of the asking tokens [B, Q, D] with angles [B, Q, Dh / 2], given `keys_and_values` of the asked ones."""
        attention_key, output_key, mlp_key = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        normed = self.attention_norm(asking)
        heads = attend(self._split_heads(self.query(normed), angles), key, value, key_valid,
                       dropout_rate=self.attention_dropout, dropout_key=attention_key)
        residual = normed if self.flavour == "paper" else asking
        x = residual + dropout(self.output(heads.reshape(asking.shape)), self.residual_dropout, output_key)
        hidden = jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False)
        return x + dropout(self.mlp_out(hidden), self.residual_dropout, mlp_key)

    def _split_heads(self, x: jax.Array, angles: jax.Array | None = None) -> jax.Array:
        heads = x.reshape(*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        return heads if angles is None else rotate(heads, angles)


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
        kind: a key of WIRING.
        tokens: "latents" [B, L, D], "contexts" [B, C, D], "targets" [B, M, D].
        valid: "contexts" [B, C] bool, "targets" [B, M] bool; latents are always valid.
        angles: those of the places of each stream, [B, S, Dh / 2] (`MeBT.angles`); None in the `paper` flavour.
        dropout_key: random key of this layer; None is deterministic.

    Returns:
        The streams, those that asked replaced.
    """
    asking, asked = WIRING[kind]
    key, value = block.keys_and_values(_join(tokens, asked), _join(angles, asked))
    new = block(_join(tokens, asking), key, value, _joined_valid(asked, tokens, valid), _join(angles, asking),
                dropout_key=dropout_key)
    ends = [0]
    for name in asking:
        ends.append(ends[-1] + tokens[name].shape[1])
    return tokens | {name: new[:, start:end] for name, start, end in zip(asking, ends, ends[1:])}


def _join(streams: dict[str, jax.Array] | None, names: tuple[str, ...]) -> jax.Array | None:
    return None if streams is None else jnp.concatenate([streams[name] for name in names], axis=1)


def _joined_valid(names: tuple[str, ...], tokens: dict[str, jax.Array], valid: dict[str, jax.Array]) -> jax.Array | None:
    if names == ("latents",):
        return None
    masks = [valid[name] if name in valid else jnp.ones(tokens[name].shape[:2], bool) for name in names]
    return jnp.concatenate(masks, axis=1)


def linear(inputs: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    """Linear layer with float32 parameters, initialised like official gpt.py:225-229."""
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs)


def layer_norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's epsilon; mean and variance in float32, and by two passes since E[x^2] - E[x]^2 cancels."""
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)
