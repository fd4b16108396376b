"""Fields of `config.decoding` for the method "masked": how a trained model draws clips."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mebt_jax.config_fields import field
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.presets import PRESETS, with_preset
from mebt_jax.methods.masked.schedules import SCHEDULES

if TYPE_CHECKING:
    from mebt_jax.config import Config

PAPER = PRESETS["ucf128"]
ORDERS = ("confidence", "random", "halton")


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Iterative decoding (draft), and revision of what it drew (paper section 3.4)."""

    preset: str = field(
        "",
        'Settings of the official scripts by name, in place of those below: "sky16", ... '
        "(mebt_jax/methods/masked/presets.py).",
    )
    order: str = field(
        "confidence",
        'Which tokens a draft step commits: "confidence" (MaskGIT, official), "random", or '
        '"halton" (evenly over space and time). The last two know the tokens before the pass and '
        "compute less.",
        one_of="mebt_jax.methods.masked.orders:ORDERS",
    )
    mask_schedule: str = field(
        "cosine",
        "Share of tokens still masked after step s of S is schedule(s / S) (MaskGIT's cosine).",
        one_of=SCHEDULES,
    )
    draft_steps: int = field(PAPER.draft_steps, "S, draft steps.", least=1)
    choice_temperature: float = field(
        PAPER.choice_temperature,
        "Temperature of the Gumbel noise on the confidence of a draft step.",
    )
    temperature: float = field(
        1.0,
        "Temperature of the token distribution. This temperature and top_k and top_p are the "
        "draft's; as in the official scripts the other passes use no filter.",
    )
    top_k: int = field(PAPER.top_k, "Keep the k most probable codes; 0 keeps all.", least=0)
    top_p: float = field(
        1.0, "Keep the smallest set of codes with this probability; 1 keeps all.", above=0, most=1
    )
    bootstrap_steps: int = field(
        PAPER.bootstrap_steps,
        "Steps before the draft that each commit one token at a random position.",
    )
    remask_steps: int = field(
        0,
        "Steps, in the middle of the draft, that each commit some tokens and hide as many others "
        "again, chosen at random (ReMDM), so that a token can still change.",
        least=0,
    )
    remask_at: float = field(
        0.2,
        "The remask steps run when at most this share of the tokens is masked.",
        above=0,
        below=1,
    )
    remask_share: float = field(
        0.05, "Each remask step commits and hides this share of the tokens.", above=0, below=1
    )
    revise_rounds: int = field(
        PAPER.revise_rounds,
        "M rounds, each re-predicting R random parts of the clip in turn from the rest, at its own "
        "temperature.",
    )
    revise_partitions: int = field(
        PAPER.revise_partitions,
        "R, parts of a revision round. Where fewer tokens than R are drawn, each is a part.",
        least=1,
    )
    revise_temperature: float = field(PAPER.revise_temperature, "Temperature of the revision.")

    def check(self, config: Config, path: str) -> None:
        with_preset(self)
        size = config.tokenizer.codebook_size
        if self.top_k > size:
            raise UserError(
                f"{path}.top_k is {self.top_k}, but must lie between 0 and the {size} codes."
            )
