"""Linear layers and norms with the transformer's conventions, and the MLP of its blocks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mebt_jax.runtime.sharding import constrain


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
        dot_general=_dot_general,
        rngs=rngs,
    )


def layer_norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's epsilon and float32 moments.

    The variance takes a second pass over the channels, since E[x^2] - E[x]^2 cancels.
    """
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Mlp(nnx.Module):
    """x -> W_down gelu(W_up x): [B, S, D] -> [B, S, D], with a hidden width of 4 D.

    The exact GELU, as PyTorch's default (official gpt.py:170).
    """

    def __init__(self, width: int, dtype: jnp.dtype, *, remat: bool, rngs: nnx.Rngs):
        """`remat`: compute the GELU again in the backward pass. Its gradient would otherwise store
        two more arrays of the size of the hidden layer, the largest of a training step.
        """
        self.remat = remat
        self.up_proj = linear(width, 4 * width, dtype, rngs)
        self.down_proj = linear(4 * width, width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        hidden = checkpoint_name(
            constrain(self.up_proj(x), "batch", "tokens", "hidden"), "mlp_hidden"
        )
        hidden = jax.checkpoint(gelu)(hidden) if self.remat else gelu(hidden)
        return checkpoint_name(self.down_proj(hidden), "mlp_output")


def _dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """[B, S, D] times [D, K] as the `dot_general` of a linear layer, whose options are defaults."""
    return _matmul(x, kernel)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Y = X W with the gradients dX = dY W^T and dW = X^T dY, summed over batch and tokens.

    They are written out because JAX's transpose rule computes dW^T, for which XLA on CPU has no
    fast product: 1.2 times the time, and a copy of dY along the wrong axis (benchmarks/RESULTS.md).
    """
    return x @ kernel


def _matmul_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: Any, d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return d_y @ kernel.T, jnp.einsum("bmd,bmk->dk", x, d_y)


_matmul.defvjp(_matmul_forward, _matmul_backward)
