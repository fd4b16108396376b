"""What a decoding run does, pass by pass, as data that is known before it starts.

A plan is built from the sampling settings and the number of tokens alone, so every pass has static sizes: `decode` turns
it into a few compiled programs, `presets` and the manifest of the sample stage count its passes.
"""

import dataclasses

from mebt_jax.config import SampleConfig
from mebt_jax.errors import UserError
from mebt_jax.masking.schedules import masked_count

BOOTSTRAP, DRAFT, REVISE = "bootstrap", "draft", "revise"


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass over the clip; all counts are tokens per clip."""

    kind: str
    contexts: int  # tokens the model sees
    targets: int  # tokens it predicts
    committed: int  # predicted tokens that are kept
    temperature: float
    choice_temperature: float = 0.0
    revise_round: int = 0
    part: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """All passes of a decoding run over `num_tokens` tokens of which `num_known` are given and never change."""

    passes: tuple[Pass, ...]
    num_tokens: int
    num_known: int
    partitions: int
    top_k: int  # of the draft; 0 keeps all codes
    top_p: float  # of the draft; 1 keeps all codes

    @property
    def num_passes(self) -> int:
        return len(self.passes)


def build_plan(config: SampleConfig, num_tokens: int, num_known: int = 0) -> Plan:
    """Bootstrap, draft and revise passes for clips of `num_tokens` tokens (official: sample, revise of mebt/transformer.py).

    Raises:
        UserError: more revise partitions than tokens to decode, or nothing left to decode.
    """
    free = num_tokens - num_known
    if free < 1:
        raise UserError(f"All {num_tokens} tokens of the clip are known already and there is nothing to sample; leave "
                        f"at least one unknown.")
    if config.revise_rounds and not 1 <= config.revise_partitions <= free:
        raise UserError(f"config.sample.revise_partitions is {config.revise_partitions}, but must be between 1 and the "
                        f"{free} tokens that are decoded, or set config.sample.revise_rounds to 0.")
    passes = _bootstrap(min(config.bootstrap_steps, free), num_tokens, num_known)
    decoded = len(passes)
    passes += _draft(config, num_tokens, num_known, decoded)
    passes += _revise(config, num_tokens, num_known)
    return Plan(passes=tuple(passes), num_tokens=num_tokens, num_known=num_known, partitions=config.revise_partitions,
                top_k=config.top_k, top_p=config.top_p)


def part_size(free: int, partitions: int, part: int) -> int:
    """Tokens in one of `partitions` even parts of `free` tokens; where it does not divide, the first are larger by one.

    Note: mask_sampler.py:328 asserts that it divides.
    """
    return (free - part + partitions - 1) // partitions


def _bootstrap(count: int, num_tokens: int, num_known: int) -> list[Pass]:
    # Note: sample_vqgan_transformer_videos.py:43 runs the bootstrap at temperature 1, without top-k and top-p.
    return [Pass(BOOTSTRAP, num_known + i, num_tokens - num_known - i, 1, temperature=1.0) for i in range(count)]


def _draft(config: SampleConfig, num_tokens: int, num_known: int, decoded: int) -> list[Pass]:
    passes = []
    free = num_tokens - num_known
    masked = free - decoded
    for step in range(1, config.draft_steps + 1):
        # Note: as in transformer.py:401 the schedule counts all free tokens, bootstrapped ones too, so the first steps may
        # ask for more masked tokens than there are; those are skipped. The official code runs the pass if the counts are
        # equal, though it commits nothing; skipping it changes no token's distribution.
        remaining = int(masked_count(config.mask_schedule, step / config.draft_steps, free))
        if remaining >= masked:
            continue
        passes.append(Pass(DRAFT, num_tokens - masked, masked, masked - remaining, temperature=config.temperature,
                           choice_temperature=config.choice_temperature * (1 - step / config.draft_steps)))
        masked = remaining
    return passes


def _revise(config: SampleConfig, num_tokens: int, num_known: int) -> list[Pass]:
    passes = []
    for revise_round in range(config.revise_rounds):
        for part in range(config.revise_partitions):
            size = part_size(num_tokens - num_known, config.revise_partitions, part)
            passes.append(Pass(REVISE, num_tokens - size, size, size, temperature=config.revise_temperature,
                               revise_round=revise_round, part=part))
    return passes
