"""The settings of the official sampling scripts by name (scripts/valid_dnr_config_ckpt_exp_*.sh),
for configs to take over.

`num_passes` counts what the script asks for: bootstrap + draft steps + rounds * partitions. A plan
may run a few passes fewer, because draft steps that commit nothing are skipped (see `plan`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mebt_jax.errors import UserError

if TYPE_CHECKING:
    from mebt_jax.methods.masked.decoding_config import DecodingConfig


@dataclasses.dataclass(frozen=True)
class Preset:
    """Fields of `config.decoding` under their own names; all scripts use the cosine schedule and
    temperature 1.
    """

    draft_steps: int
    choice_temperature: float
    top_k: int
    bootstrap_steps: int
    revise_rounds: int
    revise_partitions: int
    revise_temperature: float

    @property
    def num_passes(self) -> int:
        return self.bootstrap_steps + self.draft_steps + self.revise_rounds * self.revise_partitions


PRESETS = {
    "sky16": Preset(
        32,
        8.0,
        top_k=0,
        bootstrap_steps=0,
        revise_rounds=2,
        revise_partitions=2,
        revise_temperature=0.7,
    ),
    "taichi16": Preset(
        64,
        2.0,
        top_k=0,
        bootstrap_steps=0,
        revise_rounds=8,
        revise_partitions=2,
        revise_temperature=0.3,
    ),
    "ucf16": Preset(
        128,
        6.0,
        top_k=0,
        bootstrap_steps=0,
        revise_rounds=4,
        revise_partitions=4,
        revise_temperature=0.7,
    ),
    "sky128": Preset(
        32,
        4.0,
        top_k=32,
        bootstrap_steps=64,
        revise_rounds=2,
        revise_partitions=2,
        revise_temperature=0.7,
    ),
    "taichi128": Preset(
        32,
        4.0,
        top_k=32,
        bootstrap_steps=64,
        revise_rounds=4,
        revise_partitions=2,
        revise_temperature=0.1,
    ),
    "ucf128": Preset(
        32,
        2.0,
        top_k=32,
        bootstrap_steps=64,
        revise_rounds=2,
        revise_partitions=32,
        revise_temperature=0.1,
    ),
}


def with_preset(config: DecodingConfig) -> DecodingConfig:
    """The settings with those of `config.preset` put in, if it names one.

    Raises:
        UserError: there is no such preset.
    """
    if not config.preset:
        return config
    if config.preset not in PRESETS:
        raise UserError(
            f"config.decoding.preset is {config.preset!r}, but must be one of "
            f'{", ".join(PRESETS)}, or "" for the settings of the config.'
        )
    return dataclasses.replace(config, **dataclasses.asdict(PRESETS[config.preset]))
