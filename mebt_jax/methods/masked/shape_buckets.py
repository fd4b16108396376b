"""Fixed array sizes for token sets whose sizes change every step.

The number of context and target tokens depends on the step's interval and mask ratio, but XLA
compiles one program per set of array sizes. So sizes are rounded up to a short ladder: interval
lengths to a bucket (1, 2, 3, 4, 6, 8, 12, 16, ... and T), and within a bucket of n tokens the
context to one of k steps of n / k, with as many targets as that can leave. Context and targets
together take (1 + 1 / k) n slots, so a step costs in proportion to its interval. The longest
intervals, which take most of a training's time, have k = `splits`; shorter ones fewer, for they do
not pay for their programs: 66 programs for 32 latent frames and 16 splits. Where every clip of the
batch has its own ratio there are k^2 programs instead of k.
"""

import dataclasses
import math

from mebt_jax.config import MaskingConfig

FEWEST_SPLITS = 4  # of a bucket, unless `splits` is less


@dataclasses.dataclass(frozen=True)
class StepShape:
    """Static sizes of one training step; hashable, made to be a static argument of `jax.jit`."""

    interval: int  # bucket of the interval length, in latent frames
    contexts: int  # C, context slots per clip
    targets: int  # M, target slots per clip


def interval_buckets(frames: int) -> tuple[int, ...]:
    """Ladder of interval lengths up to T: powers of two, their one-and-a-half-folds, and T
    itself.
    """
    powers = [2**i for i in range(frames.bit_length())]
    ladder = {size for power in powers for size in (power, power * 3 // 2) if size < frames}
    return (*sorted(ladder), frames)


def step_shape(
    config: MaskingConfig, grid: tuple[int, int, int], interval: int, contexts: int, targets: int
) -> StepShape:
    """The smallest shape of the ladder that holds the given counts (largest of the batch) at this
    interval length.
    """
    frames, height, width = grid
    bucket = next(size for size in interval_buckets(frames) if size >= interval)
    tokens = bucket * height * width
    step = _step(config, grid, tokens)
    context_steps = max(1, -(-contexts // step))
    # Beyond the first k - 1 context steps there are at most tokens - (k - 1) step targets.
    target_steps = context_steps
    if (
        config.ratio_per_sample
    ):  # the clip with the most targets is not the one with the most context
        target_steps = (tokens - targets) // step + 1
    return _shape(config, bucket, tokens, step, context_steps, target_steps)


def all_shapes(config: MaskingConfig, grid: tuple[int, int, int]) -> tuple[StepShape, ...]:
    """Every StepShape that training with this config can meet: an upper bound on the number of
    compilations.
    """
    frames, height, width = grid
    shapes = set()
    for bucket in (frames,) if config.interval_schedule == "longest" else interval_buckets(frames):
        tokens = bucket * height * width
        step = _step(config, grid, tokens)
        steps = range(1, -(-tokens // step) + 1)
        pairs = [(c, t) for c in steps for t in (steps if config.ratio_per_sample else (c,))]
        shapes |= {_shape(config, bucket, tokens, step, c, t) for c, t in pairs}
    return tuple(sorted(shapes, key=dataclasses.astuple))


def _step(config: MaskingConfig, grid: tuple[int, int, int], tokens: int) -> int:
    """Tokens between the sizes of a bucket of so many tokens."""
    splits = max(min(config.splits, FEWEST_SPLITS), -(-config.splits * tokens // math.prod(grid)))
    return -(-tokens // splits)


def _shape(
    config: MaskingConfig,
    bucket: int,
    tokens: int,
    step: int,
    context_steps: int,
    target_steps: int,
) -> StepShape:
    targets = tokens - (target_steps - 1) * step
    if config.target_budget > 0:
        targets = min(targets, config.target_budget)
    return StepShape(interval=bucket, contexts=min(context_steps * step, tokens), targets=targets)
