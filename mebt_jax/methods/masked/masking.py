"""Draws how much to mask on the host, and which tokens on the device.

`draw_masking` fixes the sizes of a step, the same on every process; `split_tokens` then picks,
inside the jitted step, the context and target tokens of every clip that the transformer is trained
on (paper section 3.3).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mebt_jax.config import MaskingConfig
from mebt_jax.methods.masked.intervals import draw_interval, interval_probabilities
from mebt_jax.methods.masked.schedules import masked_count
from mebt_jax.methods.masked.shape_buckets import StepShape, step_shape


@dataclasses.dataclass(frozen=True)
class MaskDraw:
    """Sizes of one training step; `shape` is static, the rest are numbers that the jitted step
    takes as arguments.
    """

    shape: StepShape
    interval: int  # v, latent frames of the interval
    num_context: np.ndarray  # [B] int32
    num_targets: np.ndarray  # [B] int32


@struct.dataclass
class Split:
    """Context and target tokens of a batch, padded to C and M slots; positions are flat (t, h, w)
    indices of the whole clip.

    Padded slots hold code 0 and position 0.
    """

    context_codes: jax.Array  # [B, C] int32
    context_positions: jax.Array  # [B, C] int32
    context_valid: jax.Array  # [B, C] bool
    target_codes: jax.Array  # [B, M] int32
    target_positions: jax.Array  # [B, M] int32
    target_valid: jax.Array  # [B, M] bool


def draw_masking(
    config: MaskingConfig, grid: tuple[int, int, int], batch_size: int, seed: int, step: int
) -> MaskDraw:
    """Interval length and token counts of one step: a function of (seed, step) alone, so equal on
    every process.

    Args:
        config: schedules, ratio range, target budget, ladder.
        grid: (T, H, W) of a whole clip.
        batch_size: B, clips of the global batch.
        seed: of the run.
        step: training step, which also drives the interval curriculum.
    """
    rng = np.random.default_rng((seed, step))
    frames, height, width = grid
    interval = draw_interval(
        rng,
        interval_probabilities(
            config.interval_schedule, frames, step, config.interval_alpha, config.interval_beta
        ),
    )
    tokens = interval * height * width
    u = rng.uniform(
        config.ratio_min, config.ratio_max, size=batch_size if config.ratio_per_sample else 1
    )
    # At least one target, or the step would have no loss.
    masked = np.maximum(masked_count(config.ratio_schedule, u, tokens), 1)
    targets = np.minimum(masked, config.target_budget) if config.target_budget > 0 else masked
    contexts = tokens - masked
    return MaskDraw(
        shape=step_shape(config, grid, interval, int(contexts.max()), int(targets.max())),
        interval=interval,
        num_context=np.broadcast_to(contexts, batch_size).astype(np.int32),
        num_targets=np.broadcast_to(targets, batch_size).astype(np.int32),
    )


def split_tokens(
    key: jax.Array,
    codes: jax.Array,
    interval: jax.Array,
    num_context: jax.Array,
    num_targets: jax.Array,
    *,
    shape: StepShape,
) -> Split:
    """Random disjoint context and target tokens from a random interval of each clip.

    Args:
        key: random key.
        codes: [B, T, H, W] int32.
        interval: v, latent frames of the interval, scalar.
        num_context, num_targets: [B] int32; together at most v * H * W, and within the capacities
            of `shape`.
        shape: static sizes; jit with this argument static.

    Note: official mask_sampler.py:90 draws one start of the interval per batch; here every clip has
    its own. Official mask_sampler.py:114 takes the last tokens of the permutation as targets; here
    those right after the context, which is the same distribution.
    """
    batch, frames, height, width = codes.shape
    start_key, order_key = jax.random.split(key)
    start = jax.random.randint(start_key, (batch,), 0, frames - interval + 1) * (
        height * width
    )  # [B]
    slots = jnp.arange(shape.interval * height * width, dtype=jnp.int32)
    # Slots beyond the interval get the largest score and so come last; the sort is stable and they
    # are the later slots, so a drawn score that happens to be the largest does no harm.
    scores = jax.random.bits(order_key, (batch, slots.size), jnp.uint32)
    scores = jnp.where((slots < interval * height * width)[None], scores, jnp.uint32(2**32 - 1))
    order = jnp.argsort(scores, axis=1)  # [B, slots], a permutation of the interval's slots first
    flat_codes = codes.reshape(batch, -1)

    def take(
        first: jax.Array, count: jax.Array, capacity: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        index = jnp.arange(capacity, dtype=jnp.int32)[None]
        valid = index < count[:, None]
        local = jnp.take_along_axis(
            order, jnp.minimum(first[:, None] + index, slots.size - 1), axis=1
        )
        positions = jnp.where(valid, start[:, None] + local, 0).astype(jnp.int32)
        return (
            jnp.where(valid, jnp.take_along_axis(flat_codes, positions, axis=1), 0),
            positions,
            valid,
        )

    context_codes, context_positions, context_valid = take(
        jnp.zeros_like(num_context), num_context, shape.contexts
    )
    target_codes, target_positions, target_valid = take(num_context, num_targets, shape.targets)
    return Split(
        context_codes,
        context_positions,
        context_valid,
        target_codes,
        target_positions,
        target_valid,
    )
