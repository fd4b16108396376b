"""What a decoding run does, pass by pass, as data that is known before it starts.

A plan is built from the sampling settings and the number of tokens alone, so every pass has static
sizes: `decode` turns it into a few compiled programs, `presets` and the manifest of the sample
stage count its passes.
"""

import dataclasses
import functools

from mebt_jax.config import SampleConfig
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.schedules import masked_count

BOOTSTRAP, DRAFT, REMASK, REVISE = KINDS = ("bootstrap", "draft", "remask", "revise")
# Draft passes shrink their target sets step by step. More programs mean less padding, but each
# takes seconds to compile and stays in memory with 30 MiB. With 8 the padding of 32 cosine steps is
# 5 % of the targets. Clips of 16 frames (1,024 tokens) have 3, and all their operations are 6 %
# more than with 8.
DRAFT_PROGRAMS = 8
TOKENS_PER_PROGRAM = 340


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass over the clip; all counts are tokens per clip."""

    kind: str
    contexts: int  # tokens the model sees
    targets: int  # tokens it predicts
    committed: int  # predicted tokens that are kept; a remask pass hides as many others again
    temperature: float
    choice_temperature: float = 0.0
    revise_round: int = 0
    part: int = 0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static array sizes of a pass, which several passes share; see `shared_sizes`."""

    contexts: int  # C
    targets: int  # M
    asked: int  # targets whose codes are drawn
    committed: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All passes of a decoding run over `num_tokens` tokens of which `num_known` are given and
    never change.
    """

    passes: tuple[Pass, ...]
    num_tokens: int
    num_known: int
    order: str  # of the draft: "confidence", "random" or "halton"
    partitions: int
    top_k: int  # of the draft; 0 keeps all codes
    top_p: float  # of the draft; 1 keeps all codes

    @property
    def num_passes(self) -> int:
        return len(self.passes)

    def count(self, kind: str) -> int:
        return sum(one.kind == kind for one in self.passes)


def build_plan(config: SampleConfig, num_tokens: int, num_known: int = 0) -> Plan:
    """Bootstrap, draft, remask and revise passes for clips of `num_tokens` tokens
    (mebt/transformer.py: sample, revise).

    Raises:
        UserError: nothing left to decode, or more known tokens than there are.
    """
    free = num_tokens - num_known
    if free < 0:
        raise UserError(
            f"{num_known} tokens are given, but a clip has {num_tokens}; give at most "
            f"{num_tokens - 1}."
        )
    if free < 1:
        raise UserError(
            f"All {num_tokens} tokens of the clip are known already and there is nothing to "
            "sample; leave "
            f"at least one unknown."
        )
    passes = _bootstrap(min(config.bootstrap_steps, free), num_tokens, num_known)
    passes += _draft(config, num_tokens, num_known, len(passes))
    partitions = min(
        config.revise_partitions, free
    )  # where few tokens are to be filled in, each is revised alone
    passes += _revise(config, num_tokens, num_known, partitions)
    return Plan(
        passes=tuple(passes),
        num_tokens=num_tokens,
        num_known=num_known,
        order=config.order,
        partitions=partitions,
        top_k=config.top_k,
        top_p=config.top_p,
    )


@functools.lru_cache(maxsize=64)
def shared_sizes(plan: Plan) -> tuple[Sizes, ...]:
    """Sizes of each pass: those of one kind share one program, the draft passes two, or up to
    `DRAFT_PROGRAMS` in long clips.

    The draft is cut where the padding, summed over its passes, is least. A revise pass looks at
    every slot of the clip and masks its own targets out, which costs next to nothing with the keys
    at hand.
    """
    pieces: list[list[Pass]] = [
        [one for one in plan.passes if one.kind == kind] for kind in (BOOTSTRAP, REMASK, REVISE)
    ]
    drafts = min(DRAFT_PROGRAMS, max(2, plan.num_tokens // TOKENS_PER_PROGRAM))
    pieces += _least_padding([one for one in plan.passes if one.kind == DRAFT], drafts)
    sizes = {}
    for piece in filter(None, pieces):
        targets, committed = max(one.targets for one in piece), max(one.committed for one in piece)
        asked = targets if piece[0].kind == DRAFT and plan.order == "confidence" else committed
        contexts = max(one.contexts for one in piece)
        sizes |= dict.fromkeys(piece, Sizes(contexts, targets, asked, committed))
    return tuple(sizes[one] for one in plan.passes)


def programs(plan: Plan) -> set[tuple[str, Sizes]]:
    """Every (kind, sizes) that the plan needs: one compiled program each."""
    return {(one.kind, size) for one, size in zip(plan.passes, shared_sizes(plan))}


def part_size(free: int, partitions: int, part: int) -> int:
    """Tokens in one of `partitions` even parts of `free` tokens; where it does not divide, the
    first are larger by one.

    Note: mask_sampler.py:328 asserts that it divides.
    """
    return (free - part + partitions - 1) // partitions


def _least_padding(passes: list[Pass], pieces: int) -> list[list[Pass]]:
    """Cuts passes of falling target counts into at most `pieces` runs with the least sum of
    (largest of its run - own).
    """
    cut = {(0, 0): (0, ())}  # (passes used, pieces used) -> (padded targets, ends of the pieces)
    for used in range(1, pieces + 1):
        for end in range(1, len(passes) + 1):
            options = [
                (
                    cut[start, used - 1][0] + (end - start) * passes[start].targets,
                    (*cut[start, used - 1][1], end),
                )
                for start in range(end)
                if (start, used - 1) in cut
            ]
            if options:
                cut[end, used] = min(options)
    _, ends = min((cut[key] for key in cut if key[0] == len(passes)), default=(0, ()))
    return [passes[start:end] for start, end in zip((0, *ends), ends)]


def _bootstrap(count: int, num_tokens: int, num_known: int) -> list[Pass]:
    # Note: sample_vqgan_transformer_videos.py:43 runs the bootstrap at temperature 1, without top-k
    # and top-p.
    return [
        Pass(BOOTSTRAP, num_known + i, num_tokens - num_known - i, 1, temperature=1.0)
        for i in range(count)
    ]


def _draft(config: SampleConfig, num_tokens: int, num_known: int, decoded: int) -> list[Pass]:
    passes = []
    free = num_tokens - num_known
    masked = free - decoded
    remasks = config.remask_steps
    for step in range(1, config.draft_steps + 1):
        # Note: as in transformer.py:401 the schedule counts all free tokens, bootstrapped ones too,
        # so the first steps may ask for more masked tokens than there are; those are skipped. The
        # official code runs the pass if the counts are equal, though it commits nothing; skipping
        # it changes no token's distribution.
        remaining = int(masked_count(config.mask_schedule, step / config.draft_steps, free))
        if remaining >= masked:
            continue
        if remaining <= config.remask_at * free and remasks and masked < free:
            passes += _remask(config, num_tokens, free, masked)
            remasks = 0
        passes.append(
            Pass(
                DRAFT,
                num_tokens - masked,
                masked,
                masked - remaining,
                temperature=config.temperature,
                choice_temperature=config.choice_temperature * (1 - step / config.draft_steps),
            )
        )
        masked = remaining
    return passes


def _remask(config: SampleConfig, num_tokens: int, free: int, masked: int) -> list[Pass]:
    """The loop of ReMDM (Wang et al. 2025, section 4.2): at a constant mask, unmask some tokens and
    mask as many others.
    """
    count = max(1, min(round(config.remask_share * free), masked, free - masked))
    return [
        Pass(REMASK, num_tokens - masked, masked, count, temperature=config.temperature)
    ] * config.remask_steps


def _revise(config: SampleConfig, num_tokens: int, num_known: int, partitions: int) -> list[Pass]:
    passes = []
    for revise_round in range(config.revise_rounds):
        for part in range(partitions):
            size = part_size(num_tokens - num_known, partitions, part)
            passes.append(
                Pass(
                    REVISE,
                    num_tokens - size,
                    size,
                    size,
                    temperature=config.revise_temperature,
                    revise_round=revise_round,
                    part=part,
                )
            )
    return passes
