"""Draws how much to mask on the host, and which tokens on the device (paper section 3.3).

`draw_masking` fixes the sizes of a step, the same on every process; `mask_tokens` then chooses,
inside the jitted step, the context and target tokens of every clip that the backbone is trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mebt_jax.backbones.interface import MaskedTokens
from mebt_jax.methods.masked.intervals import draw_interval, interval_probabilities
from mebt_jax.methods.masked.masked_config import MaskedConfig
from mebt_jax.methods.masked.schedules import masked_count
from mebt_jax.methods.masked.shape_buckets import StepShape, step_shape


@dataclasses.dataclass(frozen=True)
class MaskDraw:
    """Sizes of one training step; `shape` is static, the rest are arguments of the jitted step."""

    shape: StepShape
    interval: int  # v, latent frames of the interval
    num_contexts: np.ndarray  # [B] int32
    num_targets: np.ndarray  # [B] int32


@struct.dataclass
class MaskedExamples:
    """What the backbone sees of a batch, and the tokens that it is to predict.

    Padded slots have token 0 and position 0.
    """

    tokens: MaskedTokens
    target_tokens: jax.Array  # [B, M] int32


def draw_masking(
    config: MaskedConfig, grid: tuple[int, int, int], batch_size: int, seed: int, step: int
) -> MaskDraw:
    """Interval length and token counts of one step: a function of (seed, step) alone.

    Args:
        config: schedules, ratio range, target budget, buckets.
        grid: (T, H, W) of a whole clip.
        batch_size: B, clips of the global batch.
        seed: of the run.
        step: training step, which also drives the interval curriculum.
    """
    rng = np.random.default_rng((seed, step))
    frames, height, width = grid
    probabilities = interval_probabilities(
        config.interval_schedule, frames, step, config.interval_alpha, config.interval_beta
    )
    interval = draw_interval(rng, probabilities)
    tokens = interval * height * width
    size = batch_size if config.ratio_per_sample else 1
    u = rng.uniform(config.ratio_min, config.ratio_max, size=size)
    # At least one target, or the step would have no loss.
    masked = np.maximum(masked_count(config.ratio_schedule, u, tokens), 1)
    targets = np.minimum(masked, config.target_budget) if config.target_budget > 0 else masked
    contexts = tokens - masked
    return MaskDraw(
        shape=step_shape(config, grid, interval, int(contexts.max()), int(targets.max())),
        interval=interval,
        num_contexts=np.broadcast_to(contexts, batch_size).astype(np.int32),
        num_targets=np.broadcast_to(targets, batch_size).astype(np.int32),
    )


def mask_tokens(
    key: jax.Array,
    tokens: jax.Array,
    interval: jax.Array,
    num_contexts: jax.Array,
    num_targets: jax.Array,
    *,
    shape: StepShape,
) -> MaskedExamples:
    """Random disjoint context and target tokens from a random interval of each clip.

    Args:
        key: random key.
        tokens: [B, T, H, W] int32.
        interval: v, latent frames of the interval, scalar.
        num_contexts, num_targets: [B] int32; together at most v * H * W, and within `shape`.
        shape: static sizes; jit with this argument static.

    Note: official mask_sampler.py:90 draws one start of the interval per batch; here every clip has
    its own. Official mask_sampler.py:114 takes the last tokens of the permutation as targets; here
    those right after the contexts, which is the same distribution.
    """
    batch, frames, height, width = tokens.shape
    start_key, order_key = jax.random.split(key)
    start = jax.random.randint(start_key, (batch,), 0, frames - interval + 1)
    start = start * (height * width)  # [B]
    slots = jnp.arange(shape.interval * height * width, dtype=jnp.int32)
    # Slots beyond the interval get the largest score and so come last. The sort is stable and they
    # are the later slots, so a drawn score that happens to be the largest does no harm.
    scores = jax.random.bits(order_key, (batch, slots.size), jnp.uint32)
    inside = (slots < interval * height * width)[None]
    scores = jnp.where(inside, scores, jnp.uint32(2**32 - 1))
    order = jnp.argsort(scores, axis=1)  # [B, slots], a permutation of the interval's slots first
    flat_tokens = tokens.reshape(batch, -1)

    def take(
        first: jax.Array, count: jax.Array, size: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        index = jnp.arange(size, dtype=jnp.int32)[None]
        valid = index < count[:, None]
        slot = jnp.minimum(first[:, None] + index, slots.size - 1)
        position = jnp.take_along_axis(order, slot, axis=1)
        positions = jnp.where(valid, start[:, None] + position, 0).astype(jnp.int32)
        taken = jnp.where(valid, jnp.take_along_axis(flat_tokens, positions, axis=1), 0)
        return taken, positions, valid

    contexts = take(jnp.zeros_like(num_contexts), num_contexts, shape.contexts)
    target_tokens, target_positions, target_valid = take(num_contexts, num_targets, shape.targets)
    return MaskedExamples(MaskedTokens(*contexts, target_positions, target_valid), target_tokens)
