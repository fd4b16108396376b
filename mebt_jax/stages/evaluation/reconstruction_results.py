"""The numbers of a tokenizer's reconstructions and of its codebook, for a run and for a tokenizer
alone.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mebt_jax.metrics import uncertainty
from mebt_jax.metrics.distances import codebook_usage
from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.results import Result
from mebt_jax.stages.evaluation.evaluated_clips import RealClips
from mebt_jax.stages.evaluation.feature_networks import FRECHET


def paired_frechet(
    split: str, clips: RealClips, text: str, protocol: Protocol, form: ClipForm
) -> Result:
    """Distance of features before and after the tokenizer, of the same clips, which `text`
    describes.
    """
    real, reconstructed = clips.real[FRECHET], clips.reconstructed[FRECHET]
    distance = uncertainty.from_samples(
        lambda after, before: frechet_distance(after, before, protocol.unbiased),
        reconstructed,
        real,
    )
    # A tokenizer without loss reaches 0.
    distance = dataclasses.replace(distance, real_floor=0.0, real_floor_count=len(real))
    return Result(
        distance,
        f"{protocol.measure} of {split} clips after the tokenizer and the same clips before it; "
        "on I3D features this is rFVD",
        protocol.describe(len(real), form, 1, f"{text}, each against itself"),
    )


@dataclasses.dataclass(frozen=True)
class TokenNumber:
    """A number of tokens [n, T, H, W]."""

    measure: Callable[[np.ndarray], float]
    biased: bool | None  # see `uncertainty.from_samples`
    definition: str


def token_numbers(codebook_size: int, split: str) -> dict[str, TokenNumber]:
    """How the codebook is used in the clips of a split, by name."""

    def number(
        measure: Callable[[np.ndarray], float], biased: bool | None, definition: str
    ) -> TokenNumber:
        return TokenNumber(
            lambda tokens: measure(codebook_usage.count_tokens(tokens, codebook_size)),
            biased,
            definition,
        )

    return {
        "usage": number(
            codebook_usage.usage,
            None,
            f"share of the {codebook_size} codes that occur in the {split} clips",
        ),
        "dead_codes": number(
            codebook_usage.dead,
            None,
            f"codes of {codebook_size} that never occur in the {split} clips",
        ),
        "perplexity": number(
            codebook_usage.perplexity,
            True,
            f"exp(entropy) of the code frequencies of the {split} clips",
        ),
    }
