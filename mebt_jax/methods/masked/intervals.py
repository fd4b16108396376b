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
        schedule: "clip", "renormalized", "uniform" or "longest".
        frames: T, latent frames of a whole clip.
        step: training step n.
        alpha: steps after which the mean length has grown by one latent frame.
        beta: standard deviation in latent frames.

    Returns:
        [T] float64, sums to 1.

    Raises:
        UserError: alpha or beta is not positive where the schedule needs them.
    """
    lengths = np.arange(1, frames + 1)
    if schedule == "longest":
        return (lengths == frames).astype(np.float64)
    if schedule == "uniform":
        return np.full(frames, 1.0 / frames)
    if alpha <= 0 or beta <= 0:
        raise UserError(
            f"config.masking.interval_alpha and interval_beta are {alpha} and {beta}, but the "
            "interval schedule "
            f"{schedule!r} needs both positive; use 'longest' to train on whole clips only."
        )
    mean = step / alpha + 1.0
    if schedule == "clip":
        # Paper equation 4: v = clip(ceil(Normal(mean, beta)), 1, T), so the tails below 1 and above
        # T go to 1 and T.
        upper = special.ndtr((lengths - mean) / beta)
        upper[-1] = 1.0
        return np.diff(upper, prepend=0.0)
    # Note: official transformer.py:32-44 has the density at the integers, renormalised over 1..T.
    # Subtracting the largest exponent keeps the sum from underflowing to 0 late in training, which
    # the official code does not guard against.
    exponents = -0.5 * ((lengths - mean) / beta) ** 2
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


def draw_interval(rng: np.random.Generator, probabilities: np.ndarray) -> int:
    """One length in 1..T, drawn with the given probabilities [T]."""
    return int(rng.choice(len(probabilities), p=probabilities)) + 1
