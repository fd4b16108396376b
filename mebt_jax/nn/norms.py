"""Normalisations of the convolutional networks; statistics in float32 whatever the compute
precision.

All have `for_batch(x)`: the normalisation with the statistics of `x` fixed. It writes to no
variable, so it can run inside `jax.checkpoint`, which lets no write out.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

MOMENTUM = 0.1  # weight of a batch in the stored statistics of BatchNorm, PyTorch's default


class GroupNorm(nnx.GroupNorm):
    """The official norm: 32 groups, eps 1e-6.

    Note: the official code needs channels divisible by 32 (mebt/vqgan.py:263); here small networks
    get the largest number of groups up to 32 that divides their channels.
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        groups = max(g for g in range(1, 33) if channels % g == 0)
        super().__init__(
            channels,
            num_groups=groups,
            epsilon=1e-6,
            dtype=dtype,
            use_fast_variance=False,
            rngs=rngs,
        )

    def for_batch(self, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return self  # its statistics are those of each sample, and none are stored


class LayerNorm(nnx.LayerNorm):
    """Mean and variance over the channels of each position alone; eps 1e-6."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(channels, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs)

    def for_batch(self, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return self


class BatchNorm(nnx.Module):
    """Batch normalisation as PyTorch's SyncBatchNorm, which stores the unbiased variance;
    nnx.BatchNorm stores the biased one.

    `scale` and `bias` are parameters, `mean` and `variance` are statistics (`nnx.BatchStat`), all
    float32 [C]. It normalises by the stored statistics. After `train()` of a module that contains
    it, it normalises by those of the batch, and moves the stored ones towards them. Under jit with
    a batch that is split over devices these are statistics of the whole batch.
    """

    def __init__(self, channels: int, *, epsilon: float = 1e-5, dtype: jnp.dtype = jnp.float32):
        self.scale, self.bias = nnx.Param(jnp.ones((channels,))), nnx.Param(jnp.zeros((channels,)))
        self.mean, self.variance = (
            nnx.BatchStat(jnp.zeros((channels,))),
            nnx.BatchStat(jnp.ones((channels,))),
        )
        self.epsilon, self.dtype = epsilon, dtype
        self.use_running_average = True  # nnx's name, which `train()` sets

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C] in the compute type."""
        return self.for_batch(x)(x)

    def for_batch(self, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The normalisation of a batch [..., C]; in training the stored statistics move here."""
        if self.use_running_average:
            mean, variance = self.mean[...], self.variance[...]
        else:
            mean, variance, unbiased = batch_moments(x)
            for stored, new in ((self.mean, mean), (self.variance, unbiased)):
                stored[...] = (1 - MOMENTUM) * stored[...] + MOMENTUM * new
        return functools.partial(self._normalize, mean=mean, variance=variance)

    def _normalize(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        gain = self.scale[...] / jnp.sqrt(variance + self.epsilon)  # [C]
        shift = self.bias[...] - mean * gain
        leading = tuple(range(x.ndim - 1))
        y = x.astype(jnp.float32) * jnp.expand_dims(gain, leading) + jnp.expand_dims(shift, leading)
        return y.astype(self.dtype)


# The norms by the name that `config.tokenizer.norm` gives them.
NORMS: dict[str, Callable[..., nnx.Module]] = {
    "group": GroupNorm,
    "batch": lambda channels, *, dtype, rngs: BatchNorm(channels, dtype=dtype),
    "layer": LayerNorm,
}


def batch_moments(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and variance over all but the last axis of [..., C], and the unbiased variance, which
    PyTorch stores; float32 [C].
    """
    x = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    mean, variance = x.mean(axis=0), x.var(axis=0)
    return mean, variance, variance * (len(x) / max(len(x) - 1, 1))
