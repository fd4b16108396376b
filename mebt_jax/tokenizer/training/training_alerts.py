"""Alerts of a tokenizer's training: reads the numbers that it logs, and says once what goes wrong
and what to change.

Three failures that users of such tokenizers report most: training uses only a few tokens of the
codebook, a discriminator wins and its gradient no longer teaches the decoder anything, the features
run away from the codebook.
"""

import dataclasses
import math
from collections.abc import Mapping

from mebt_jax.tokenizer.quantizers import QUANTIZERS
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig

PATIENCE = 3  # log lines in a row, so that no single batch raises an alert
COLLAPSED = 0.25  # share of the highest perplexity so far
# Share of the perplexity that a batch could have; moving shapes, mostly background, have 0.035.
FEW = 0.01
MIN_PERPLEXITY = 1.5  # about one token for everything, even if the run began so
WON = 0.1  # loss of a discriminator, which is 1 (hinge) or 0.69 (vanilla) for logits of 0
# Commitment over the variance of the features: one embedding for all features would be nearer.
FAR = 1.0
# Times the lowest commitment: below that, the variance has shrunk, and the distance has not grown.
GROWN = 3.0
RUNAWAY = 30.0  # times the lowest commitment since the codebook was initialised


@dataclasses.dataclass(frozen=True)
class AlertState:
    """What is remembered of the log lines so far."""

    highest_perplexity: float = 0.0
    lowest_commitment: float = math.inf
    streaks: tuple[tuple[str, int], ...] = ()  # condition, log lines in a row that showed it
    reported: frozenset[str] = frozenset()  # conditions


def check(
    state: AlertState, record: Mapping[str, float], config: TokenizerConfig, tokens: int
) -> tuple[AlertState, list[str]]:
    """The state after one more log line, and a sentence for each condition that is new.

    Args:
        record: of metrics.jsonl, {"step": n, "train/<metric>": mean since the last line, ...};
            lines without training metrics change nothing.
        config: of the run.
        tokens: in a batch.
    """
    if "train/perplexity" not in record:
        return state, []
    values = {name.removeprefix("train/"): value for name, value in record.items()}
    state = dataclasses.replace(
        state,
        highest_perplexity=max(state.highest_perplexity, values["perplexity"]),
        lowest_commitment=min(state.lowest_commitment, values["commitment"]),
    )
    sentences = _conditions(state, values, config, tokens)
    before = dict(state.streaks)
    streaks = {condition: before.get(condition, 0) + 1 for condition in sentences}
    new = [
        condition
        for condition, length in streaks.items()
        if length >= PATIENCE and condition not in state.reported
    ]
    state = dataclasses.replace(
        state, streaks=tuple(streaks.items()), reported=state.reported.union(new)
    )
    return state, [f"at step {record['step']} {sentences[condition]}" for condition in new]


def _conditions(
    state: AlertState, values: Mapping[str, float], config: TokenizerConfig, tokens: int
) -> dict[str, str]:
    """What is wrong on one log line: condition -> sentence."""
    sentences: dict[str, str] = {}
    quantizer = QUANTIZERS[config.quantizer]
    perplexity, commitment, error = (
        values[name] for name in ("perplexity", "commitment", "quantization_error")
    )
    enough = max(
        COLLAPSED * state.highest_perplexity,
        FEW * min(config.codebook_size, tokens),
        MIN_PERPLEXITY,
    )
    if perplexity < enough:
        sentences["usage"] = (
            f"the tokenizer uses its codebook as if it had {perplexity:.1f} of "
            f"{config.codebook_size} tokens (at best {state.highest_perplexity:.1f} in this run): "
            f"{quantizer.usage_advice(config)}."
        )
    for name in ("frame", "clip"):
        loss = values.get(f"{name}_loss", math.inf)
        if loss < WON and values.get("adversarial_scale", 0.0) > 0:
            real, fake = values[f"{name}_logits/real"], values[f"{name}_logits/fake"]
            sentences[name] = (
                f"the discriminator of {name}s has won (loss {loss:.3f}, mean logit {real:.2f} for "
                f"real and {fake:.2f} for reconstructed video): lower "
                "config.tokenizer.adversarial.learning_rate or raise its lecam_weight; "
                "config.tokenizer.checkpoint takes the checkpoint of step "
                f"{config.adversarial.start}, from before, which is kept."
            )
    # A fixed codebook is far from features that are still small, and squashed features cannot run
    # away.
    moved_away = (
        not quantizer.fixed_codebook
        and error > FAR
        and commitment > GROWN * state.lowest_commitment
    )
    if moved_away or commitment > RUNAWAY * state.lowest_commitment:
        sentences["commitment"] = (
            f"the features run away from the codebook (commitment {commitment:.3g}, at best "
            f"{state.lowest_commitment:.3g}, and {error:.2f} of the features' variance): raise "
            "config.tokenizer.commitment_weight, or lower its training.learning_rate or "
            "codebook_decay."
        )
    return sentences
