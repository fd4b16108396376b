"""Watches a tokenizer's training by the numbers that it logs, and says once what goes wrong and
what to change.

Three ends that users of such tokenizers report most: the codes collapse to a few, a discriminator
wins and its gradient no longer tells the decoder anything, the features run away from the codes.
"""

import dataclasses
import math
from collections.abc import Mapping

from mebt_jax.config import TokenizerConfig

PATIENCE = 3  # log lines in a row, so that no single batch raises an alarm
COLLAPSED = 0.25  # of the highest perplexity so far
FEW = 0.01  # of the codes that a batch could have; moving shapes, mostly background, have 0.035
LEAST = 1.5  # perplexity: about one code for everything, even if the run began so
WON = 0.1  # loss of a discriminator, which is 1 (hinge) or 0.69 (vanilla) at indifference
ASTRAY = 1.0  # commitment over the variance of the features: one code for all would be nearer
# times the lowest commitment: below that, it is the variance that shrank, not the distance that
# grew
GROWN = 3.0
RUNAWAY = 30.0  # times the lowest commitment since the codes were placed


@dataclasses.dataclass(frozen=True)
class Watch:
    """What must be remembered of the log lines so far."""

    perplexity: float = 0.0  # the highest
    commitment: float = math.inf  # the lowest
    signs: tuple[tuple[str, int], ...] = ()  # log lines in a row that showed each sign
    said: frozenset[str] = frozenset()


def look(
    watch: Watch, record: Mapping[str, float], config: TokenizerConfig, tokens: int
) -> tuple[Watch, list[str]]:
    """The watch after one more line, and a sentence for each thing that has just been seen to go
    wrong.

    Args:
        record: of metrics.jsonl, {"step": n, "train/<metric>": mean since the last line, ...};
            others are passed over.
        config: of the run.
        tokens: in a batch.
    """
    if "train/perplexity" not in record:
        return watch, []
    values = {name.removeprefix("train/"): value for name, value in record.items()}
    watch = dataclasses.replace(
        watch,
        perplexity=max(watch.perplexity, values["perplexity"]),
        commitment=min(watch.commitment, values["commitment"]),
    )
    seen = _signs(watch, values, config, tokens)
    before = dict(watch.signs)
    counts = {sign: before.get(sign, 0) + 1 for sign in seen}
    new = [sign for sign, count in counts.items() if count >= PATIENCE and sign not in watch.said]
    watch = dataclasses.replace(watch, signs=tuple(counts.items()), said=watch.said.union(new))
    return watch, [f"at step {record['step']} {seen[sign]}" for sign in new]


def _signs(
    watch: Watch, values: Mapping[str, float], config: TokenizerConfig, tokens: int
) -> dict[str, str]:
    """What looks wrong on one line, with its sentence."""
    found: dict[str, str] = {}
    perplexity, commitment, error = (
        values[name] for name in ("perplexity", "commitment", "quantization_error")
    )
    if perplexity < max(COLLAPSED * watch.perplexity, FEW * min(config.codes, tokens), LEAST):
        found["codes"] = (
            f"the tokenizer uses its codes as if there were {perplexity:.1f} of {config.codes} (at "
            "best "
            f"{watch.perplexity:.1f} in this run): {_mend_of_codes(config)}."
        )
    for name in ("frame", "clip"):
        loss = values.get(f"{name}_loss", math.inf)
        if loss < WON and values.get("adversarial_scale", 0.0) > 0:
            real, fake = values[f"{name}_logits/real"], values[f"{name}_logits/fake"]
            found[name] = (
                f"the discriminator of {name}s has won (loss {loss:.3f}, mean logit {real:.2f} for "
                f"real and {fake:.2f} "
                "for reconstructed video): lower config.tokenizer.adversarial.learning_rate or "
                "raise its lecam_weight; "
                "config.tokenizer.checkpoint takes the checkpoint of step "
                f"{config.adversarial.start}, from before, "
                f"which is kept."
            )
    # Signs ("lfq") are far from features that are still small, and squashed features ("fsq") cannot
    # run away.
    astray = (
        config.quantizer in ("ema", "gradient")
        and error > ASTRAY
        and commitment > GROWN * watch.commitment
    )
    if astray or commitment > RUNAWAY * watch.commitment:
        found["commitment"] = (
            f"the features run away from the codes (commitment {commitment:.3g}, at best "
            f"{watch.commitment:.3g}, and {error:.2f} of the features' variance): raise "
            "config.tokenizer.commitment_weight, or lower its training.learning_rate or "
            "codebook_decay."
        )
    return found


def _mend_of_codes(config: TokenizerConfig) -> str:
    if config.quantizer == "ema" and config.restart_threshold == 0:
        return "set config.tokenizer.restart_threshold above 0, so that unused codes start anew"
    if config.quantizer == "lfq":
        return "raise config.tokenizer.entropy_weight"
    return (
        "lower config.tokenizer.training.learning_rate or raise config.tokenizer.commitment_weight"
    )
