"""The one transformer block of MeBT and the six ways of wiring it to the token streams.

Latents, contexts and targets are three streams of tokens. A kind of block says which streams ask
and which are asked (paper section 3.2, Table 3 for `full`); parameters have the same shapes for
every kind. `stack` runs blocks in order.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mebt_jax.config import TransformerConfig
from mebt_jax.nn.attention import KeySet, attend, dropout
from mebt_jax.nn.rotary import rotate
from mebt_jax.runtime.mesh import constrain

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

    Note: in the `paper` flavour one norm serves the asking and the asked tokens, and the residual
    is added to the *normalised* query, as in official gpt.py:180-185. `modern` adds it to the query
    itself, and turns queries and keys by the angles of their places (`rotary`); without angles
    nothing is turned.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.heads = config.heads
        self.flavour = config.flavour
        self.attention = config.attention
        self.remat = config.remat != "none"
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

    def key_set(
        self, tokens: jax.Array, valid: jax.Array | None, angles: jax.Array | None
    ) -> KeySet:
        """What asked tokens [B, S, D] with angles [B, S, Dh / 2] offer."""
        normed = self.attention_norm(tokens)
        key = self._split_heads(checkpoint_name(self.key(normed), "key"), angles)
        return KeySet(key, self._split_heads(checkpoint_name(self.value(normed), "value")), valid)

    def __call__(
        self,
        asking: jax.Array,
        asked: Sequence[KeySet],
        angles: jax.Array | None,
        *,
        gather: str,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """New values of the asking tokens [B, Q, D] with angles [B, Q, Dh / 2], given the
        `key_set`s of the asked ones.

        `gather` is the side of the attention that every device sees whole, "asking" or "asked"; the
        other stays split.
        """
        attention_key, output_key, mlp_key = (
            (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        )
        normed = self.attention_norm(asking)
        query = self._split_heads(checkpoint_name(self.query(normed), "query"), angles)
        if gather == "asking":
            query = constrain(query, "batch", None, "heads", None)
        else:
            asked = [
                one._replace(
                    key=constrain(one.key, "batch", None, "heads", None),
                    value=constrain(one.value, "batch", None, "heads", None),
                )
                for one in asked
            ]
        heads = attend(
            query,
            asked,
            how=self.attention,
            dropout_rate=self.attention_dropout,
            dropout_key=attention_key,
        )
        heads = constrain(heads, "batch", "tokens", "heads", None)
        residual = normed if self.flavour == "paper" else asking
        attended = checkpoint_name(self.output(heads.reshape(asking.shape)), "attended")
        x = constrain(
            residual + dropout(attended, self.residual_dropout, output_key), "batch", "tokens", None
        )
        hidden = checkpoint_name(
            constrain(self.mlp_in(self.mlp_norm(x)), "batch", "tokens", "hidden"), "hidden"
        )
        answer = checkpoint_name(self.mlp_out(self._gelu(hidden)), "answer")
        return constrain(
            x + dropout(answer, self.residual_dropout, mlp_key), "batch", "tokens", None
        )

    def _gelu(self, x: jax.Array) -> jax.Array:
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        # Its gradient would keep two more arrays of the size of `x`, the largest of a step.
        return jax.checkpoint(gelu)(x) if self.remat else gelu(x)

    def _split_heads(self, x: jax.Array, angles: jax.Array | None = None) -> jax.Array:
        heads = x.reshape(*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        heads = constrain(heads, "batch", "tokens", "heads", None)
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
        angles: those of the places of each stream, [B, S, Dh / 2] (`MeBT.angles`); None in the
            `paper` flavour.
        dropout_key: random key of this layer; None is deterministic.

    Returns:
        The streams, those that asked replaced.
    """
    asking, asked = WIRING[kind]
    of = dict.fromkeys(tokens) if angles is None else angles
    offered = [block.key_set(tokens[name], valid.get(name), of[name]) for name in asked]
    keys = (
        dict.fromkeys(asking)
        if dropout_key is None
        else dict(zip(asking, jax.random.split(dropout_key, len(asking))))
    )
    return tokens | {
        name: block(
            tokens[name], offered, of[name], gather=gathered_side(name), dropout_key=keys[name]
        )
        for name in asking
    }


def gathered_side(asking: str) -> str:
    """The side of the attention that is sent to every device: the latents, where there are any,
    since they are few.

    So no layer of MeBT sends more than its latents, however many tokens there are; `full` and
    `maskgit` blocks, in which tokens ask tokens, send keys and values of all of them.
    """
    return "asking" if asking == "latents" else "asked"


def linear(
    inputs: int, outputs: int, dtype: jnp.dtype, rngs: nnx.Rngs, *, bias: bool = True
) -> nnx.Linear:
    """Linear layer with float32 parameters, initialised like official gpt.py:225-229."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=nnx.initializers.normal(0.02),
        dtype=dtype,
        dot_general=_product,
        rngs=rngs,
    )


def _product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """[B, S, D] times [D, K], in the place of the `dot_general` of a linear layer, whose other
    arguments are at their defaults.
    """
    return _times(x, kernel)


@jax.custom_vjp
def _times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _backward(
    saved: tuple[jax.Array, jax.Array], of_result: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    # The transpose rule of JAX makes the transposed gradient of the kernel, for which XLA on CPU
    # has no fast product: 1.2 times the time, and a copy of `of_result` along the wrong axis
    # (benchmarks/RESULTS.md).
    return of_result @ kernel.T, jnp.einsum("bmd,bmk->dk", x, of_result)


_times.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)


def layer_norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's epsilon; mean and variance in float32, and by two passes since
    E[x^2] - E[x]^2 cancels.
    """
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)
