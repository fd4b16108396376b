"""The curriculum of interval lengths: short stretches of video first, longer ones as training goes
on (paper section 3.3).

`split` draws a length v of latent frames per step; all tokens of that step come from v consecutive
latent frames.
"""

import numpy as np
from scipy import special

from mebt_jax.errors import UserError


def interval_probabilities(
    schedule: str, frames: int, step: int, alpha: float, beta: float
) -> np.ndarray:
    """Probabilities of the interval lengths 1..frames at a training step.

    Args:
        schedule: a key of INTERVAL_SCHEDULES.
        frames: T, latent frames of a whole clip.
        step: training step n.
        alpha: steps after which the mean length has grown by one latent frame.
        beta: standard deviation in latent frames.

    Returns:
        [T] float64, sums to 1.

    Raises:
        UserError: alpha or beta is not positive where the schedule needs them.
    """
    if schedule.startswith("gaussian") and (alpha <= 0 or beta <= 0):
        raise UserError(
            f"config.method.interval_alpha and interval_beta are {alpha} and {beta}, but the "
            f"interval schedule {schedule!r} needs both positive; use 'longest' to train on whole "
            "clips only."
        )
    return INTERVAL_SCHEDULES[schedule](frames, step, alpha, beta)


def longest(frames: int, step: int, alpha: float, beta: float) -> np.ndarray:
    return (np.arange(1, frames + 1) == frames).astype(np.float64)


def uniform(frames: int, step: int, alpha: float, beta: float) -> np.ndarray:
    return np.full(frames, 1.0 / frames)


def gaussian_clipped(frames: int, step: int, alpha: float, beta: float) -> np.ndarray:
    """Paper equation 4: v = clip(ceil(Normal(n / alpha + 1, beta)), 1, T), so the tails below 1 and
    above T go to 1 and T.
    """
    mean = step / alpha + 1.0
    upper = special.ndtr((np.arange(1, frames + 1) - mean) / beta)
    upper[-1] = 1.0
    return np.diff(upper, prepend=0.0)


def gaussian_renormalized(frames: int, step: int, alpha: float, beta: float) -> np.ndarray:
    """The density at the integers, renormalised over 1..T.

    Note: official transformer.py:32-44. Subtracting the largest exponent keeps the sum from
    underflowing to 0 late in training, which the official code does not guard against.
    """
    mean = step / alpha + 1.0
    exponents = -0.5 * ((np.arange(1, frames + 1) - mean) / beta) ** 2
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


INTERVAL_SCHEDULES = {
    "gaussian_clipped": gaussian_clipped,
    "gaussian_renormalized": gaussian_renormalized,
    "uniform": uniform,
    "longest": longest,
}


def draw_interval(rng: np.random.Generator, probabilities: np.ndarray) -> int:
    """One length in 1..T, drawn with the given probabilities [T]."""
    return int(rng.choice(len(probabilities), p=probabilities)) + 1
