"""How the tokenizer uses its codebook, from the counts of each token in a set of clips.

NumPy, float64. `token_metrics` in tokenizer/quantizers computes two of these numbers in float32
inside the compiled training step.
"""

import numpy as np


def count_tokens(tokens: np.ndarray, codebook_size: int) -> np.ndarray:
    """int64 [V]: occurrences of each token in an integer array of any shape."""
    return np.bincount(np.asarray(tokens).ravel(), minlength=codebook_size)


def usage(counts: np.ndarray) -> float:
    """Share of the V tokens that occur at least once."""
    return float((counts > 0).mean())


def dead(counts: np.ndarray) -> float:
    """How many of the V tokens never occur."""
    return float((counts == 0).sum())


def perplexity(counts: np.ndarray) -> float:
    """exp(entropy) of the token counts [V]: so many tokens, all used alike, would be as hard to
    guess.
    """
    return float(np.exp(entropy(counts)))


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the token frequencies, from counts [V]."""
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def cross_entropy(counts: np.ndarray, model_counts: np.ndarray) -> float:
    """Mean negative log-likelihood in nats of tokens with `counts` under the unigram model of
    `model_counts`, both [V].

    The model's counts are raised by 1, so a token that the model never saw costs a finite amount.
    """
    model = (model_counts + 1) / (model_counts.sum() + len(model_counts))
    return float(-(counts / counts.sum() * np.log(model)).sum())
