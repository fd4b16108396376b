"""Normalisations of the convolutional networks; statistics in float32 whatever the compute
precision.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

MOMENTUM = 0.1  # weight of a batch in the stored statistics of BatchNorm, PyTorch's default


def make_norm(kind: str, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """The norm of `config.tokenizer.norm`: "group", "batch" or "token"."""
    if kind == "token":
        return nnx.LayerNorm(
            channels, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs
        )
    return (
        group_norm(channels, dtype=dtype, rngs=rngs)
        if kind == "group"
        else BatchNorm(channels, dtype=dtype)
    )


def group_norm(channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """The official norm: 32 groups, eps 1e-6.

    Note: the official code needs channels divisible by 32 (mebt/vqgan.py:263); here small networks
    get the largest number of groups up to 32 that divides their channels.
    """
    groups = max(g for g in range(1, 33) if channels % g == 0)
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs
    )


class BatchNorm(nnx.Module):
    """Batch normalisation as PyTorch's SyncBatchNorm.

    `scale` and `bias` are parameters, `mean` and `variance` are statistics (`nnx.BatchStat`), all
    float32 [C]. It normalises by these; after `train()` of a module that it is in, by those of the
    batch, and moves the stored ones towards them. Under jit with a batch split over devices those
    are of the whole batch.
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
        """The normalisation of a batch [..., C], which moves no statistics any more and so may be
        checkpointed.
        """
        if self.use_running_average:
            return functools.partial(
                self.normalize, mean=self.mean[...], variance=self.variance[...]
            )
        mean, variance, unbiased = batch_moments(x)
        self.mean[...], self.variance[...] = (
            moved(self.mean[...], mean),
            moved(self.variance[...], unbiased),
        )
        return functools.partial(self.normalize, mean=mean, variance=variance)

    def normalize(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """[..., C] with the given mean and variance [C], such as those of the batch, in place of
        the stored ones.
        """
        gain = self.scale[...] / jnp.sqrt(variance + self.epsilon)  # [C]
        shift = self.bias[...] - mean * gain
        spread = tuple(range(x.ndim - 1))
        y = x.astype(jnp.float32) * jnp.expand_dims(gain, spread) + jnp.expand_dims(shift, spread)
        return y.astype(self.dtype)


def batch_moments(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and variance over all but the last axis of [..., C], and the unbiased variance, which
    PyTorch stores; float32 [C].
    """
    x = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    mean, variance = x.mean(axis=0), x.var(axis=0)
    return mean, variance, variance * (len(x) / max(len(x) - 1, 1))


def moved(stored: jax.Array, of_batch: jax.Array) -> jax.Array:
    """The stored statistic after one batch."""
    return (1 - MOMENTUM) * stored + MOMENTUM * of_batch
