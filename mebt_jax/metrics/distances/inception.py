"""Inception Score of clips from the class logits of a video classifier (C3D fine-tuned on UCF-101).
NumPy, float64.
"""

import numpy as np
from scipy.special import log_softmax


def inception_score(logits: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """(mean, standard deviation over the splits) of exp(mean KL(p(class | clip) || p(class))) for
    logits [N, V].

    The rows are cut in their order into `splits` parts, whose lengths differ by at most one; each
    part has its own p(class). tgan2 uses one split of 2,048 clips, StyleGAN-V ten (Salimans
    et al. 2016; Saito et al. 2020). Few clips score lower, so a score without the number
    of clips and of splits means nothing.

    Raises:
        ValueError: fewer rows than splits.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"an Inception Score of {splits} splits needs as many samples, but got {len(logits)}"
        )
    scores = []
    log_probabilities = log_softmax(np.asarray(logits, np.float64), axis=1)
    for rows in np.array_split(log_probabilities, splits):
        marginal = np.logaddexp.reduce(rows, axis=0) - np.log(len(rows))  # [V]
        scores.append(np.exp((np.exp(rows) * (rows - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
