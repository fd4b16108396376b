"""Mask-ratio schedules: from progress u in [0, 1] to the share of tokens that is masked, falling
from 1 to 0.

Training draws u at random (`split`); decoding walks u from 0 to 1. All run on the host, in NumPy.
"""

import numpy as np

# Note: the functions of official mask_sampler.py:34-65, under its names.
SCHEDULES = {
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: np.cos(0.5 * np.pi * u),
    "cosine_plus": lambda u: 0.5 * (1.0 + np.cos(np.pi * u)),
    "quadratic": lambda u: (1.0 - u) ** 2,
    "square": lambda u: 1.0 - u**2,
    "cube": lambda u: 1.0 - u**3,
    "sqrt": lambda u: 1.0 - u**0.5,
    "convex": lambda u: (1.0 - u) ** 3,
}


def masked_count(schedule: str, u: float | np.ndarray, tokens: int) -> np.ndarray:
    """ceil(schedule(u) * tokens), within 0..tokens: how many tokens are masked at progress u; the
    shape of u, int64.

    Note: computed in float32 like official mask_sampler.py:102. In float64 cos(pi / 2) is a tiny
    positive number, and the last decoding step would leave one token masked.
    """
    ratio = SCHEDULES[schedule](np.asarray(u, np.float32))
    return np.clip(np.ceil(np.float32(ratio) * np.float32(tokens)), 0, tokens).astype(np.int64)
