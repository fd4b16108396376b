"""Shape buckets: fixed array sizes for token sets whose sizes change every step.

The number of context and target tokens depends on the step's interval and mask ratio, but XLA
compiles one program per set of array sizes. So sizes are rounded up to a few buckets: interval
lengths to 1, 2, 3, 4, 6, 8, 12, 16, ... and T latent frames. Within an interval bucket of n tokens
the number of contexts is rounded up to one of k multiples of n / k, and there are as many target
slots as those contexts can leave. Contexts and targets together take (1 + 1 / k) n slots, so a step
costs in proportion to its interval. The longest intervals, which take most of a training's time,
have k = `bucket_steps`. Shorter ones have fewer, since their programs would take longer to compile
than they save: 66 programs for 32 latent frames and 16 steps. Where every clip of the batch has its
own ratio there are k^2 programs instead of k.
"""

import dataclasses
import math

from mebt_jax.methods.masked.masked_config import MaskedConfig

FEWEST_STEPS = 4  # of an interval bucket, unless `bucket_steps` is less


@dataclasses.dataclass(frozen=True)
class StepShape:
    """Static sizes of one training step; hashable, made to be a static argument of `jax.jit`."""

    interval: int  # bucket of the interval length, in latent frames
    contexts: int  # C, context slots per clip
    targets: int  # M, target slots per clip


def interval_buckets(frames: int) -> tuple[int, ...]:
    """Interval lengths up to T: powers of two, one and a half times these, and T itself."""
    powers = [2**i for i in range(frames.bit_length())]
    buckets = {size for power in powers for size in (power, power * 3 // 2) if size < frames}
    return (*sorted(buckets), frames)


def step_shape(
    config: MaskedConfig,
    grid: tuple[int, int, int],
    interval: int,
    contexts: int,
    targets: int,
) -> StepShape:
    """The smallest bucket that holds the given counts (largest of the batch) at this interval."""
    frames, height, width = grid
    bucket = next(size for size in interval_buckets(frames) if size >= interval)
    tokens = bucket * height * width
    step = _step(config, grid, tokens)
    context_steps = max(1, -(-contexts // step))
    # Beyond the first k - 1 context steps there are at most tokens - (k - 1) step targets.
    target_steps = context_steps
    if config.ratio_per_sample:  # the clip with the most targets has the least context
        target_steps = (tokens - targets) // step + 1
    return _shape(config, bucket, tokens, step, context_steps, target_steps)


def all_shapes(config: MaskedConfig, grid: tuple[int, int, int]) -> tuple[StepShape, ...]:
    """Every StepShape of training with this config: an upper bound on the compilations."""
    frames, height, width = grid
    shapes = set()
    buckets = (frames,) if config.interval_schedule == "longest" else interval_buckets(frames)
    for bucket in buckets:
        tokens = bucket * height * width
        step = _step(config, grid, tokens)
        steps = range(1, -(-tokens // step) + 1)
        pairs = [(c, t) for c in steps for t in (steps if config.ratio_per_sample else (c,))]
        shapes |= {_shape(config, bucket, tokens, step, c, t) for c, t in pairs}
    return tuple(sorted(shapes, key=dataclasses.astuple))


def _step(config: MaskedConfig, grid: tuple[int, int, int], tokens: int) -> int:
    """Tokens between two context sizes of an interval bucket of `tokens` tokens."""
    proportional = -(-config.bucket_steps * tokens // math.prod(grid))
    return -(-tokens // max(min(config.bucket_steps, FEWEST_STEPS), proportional))


def _shape(
    config: MaskedConfig,
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
