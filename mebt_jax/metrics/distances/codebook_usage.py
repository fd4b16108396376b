"""How the tokenizer uses its codes, from how often each one occurs in a set of clips. NumPy,
float64.
"""

import numpy as np


def count_codes(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """int64 [V]: occurrences of each code in an integer array of any shape."""
    return np.bincount(np.asarray(codes).ravel(), minlength=num_codes)


def usage(counts: np.ndarray) -> float:
    """Share of the V codes that occur at least once."""
    return float((counts > 0).mean())


def dead(counts: np.ndarray) -> float:
    """How many of the V codes never occur."""
    return float((counts == 0).sum())


def perplexity(counts: np.ndarray) -> float:
    """exp(entropy) of the code frequencies [V]: the number of codes that would, used evenly, be as
    hard to guess.
    """
    return float(np.exp(entropy(counts)))


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the code frequencies [V]."""
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def cross_entropy(counts: np.ndarray, model_counts: np.ndarray) -> float:
    """Nats per token of tokens with frequencies `counts` under the unigram model of `model_counts`,
    both [V].

    One is added to every model count, so a code that the model never saw costs a finite amount.
    """
    model = (model_counts + 1) / (model_counts.sum() + len(model_counts))
    return float(-(counts / counts.sum() * np.log(model)).sum())
