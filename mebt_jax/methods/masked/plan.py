"""What a decoding run does, pass by pass, as data that is known before it starts.

A plan is built from the decoding settings and the number of tokens alone, so every pass has static
sizes. `decode` runs a plan by a few compiled programs; the manifest of the sample stage counts its
passes.
"""

import dataclasses
import functools

from mebt_jax.errors import UserError
from mebt_jax.methods.masked.decoding_config import DecodingConfig
from mebt_jax.methods.masked.orders import ORDERS
from mebt_jax.methods.masked.schedules import masked_count

BOOTSTRAP, DRAFT, REMASK, REVISE = KINDS = ("bootstrap", "draft", "remask", "revise")
# Draft passes shrink their target sets step by step. More programs mean less padding, but each
# takes seconds to compile and 30 MiB of memory. With 8 the padding of 32 cosine steps is 5 % of the
# targets. Clips of 16 frames (1,024 tokens) have 3, which is 6 % more operations than with 8.
DRAFT_PROGRAMS = 8
TOKENS_PER_PROGRAM = 340


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass over the clip; all counts are tokens per clip."""

    kind: str  # of KINDS
    contexts: int  # tokens the model sees
    targets: int  # tokens it predicts
    committed: int  # predicted tokens that stay; a remask pass hides as many others again
    temperature: float
    choice_temperature: float = 0.0
    revise_round: int = 0
    partition: int = 0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static array sizes of a pass, which several passes share; see `shared_sizes`."""

    contexts: int  # C
    targets: int  # M
    num_logits: int  # targets whose tokens are drawn
    committed: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All passes of a decoding run over `num_tokens` tokens, of which `num_known` are given."""

    passes: tuple[Pass, ...]
    num_tokens: int
    num_known: int
    order: str  # of the draft, see `orders`
    partitions: int
    top_k: int  # of the draft; 0 keeps all tokens of the vocabulary
    top_p: float  # of the draft; 1 keeps all tokens of the vocabulary

    @property
    def num_passes(self) -> int:
        return len(self.passes)

    def count(self, kind: str) -> int:
        return sum(step.kind == kind for step in self.passes)


def build_plan(config: DecodingConfig, num_tokens: int, num_known: int = 0) -> Plan:
    """Bootstrap, draft, remask and revise passes for clips of `num_tokens` tokens (official
    transformer.py: `sample`, `revise`).

    Raises:
        UserError: nothing is left to decode, or more tokens are known than there are.
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
            "sample; leave at least one unknown."
        )
    passes = _bootstrap(min(config.bootstrap_steps, free), num_tokens, num_known)
    passes += _draft(config, num_tokens, num_known, len(passes))
    partitions = min(config.revise_partitions, free)  # of a few free tokens each is revised alone
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
    """Sizes of each pass. Passes of a kind share one program; the draft has two, or up to
    `DRAFT_PROGRAMS` in long clips.

    The draft is cut where the padding, summed over its passes, is least. A revise pass searches
    every slot of the clip for its contexts, which costs next to nothing with a cache.
    """
    groups = [
        [step for step in plan.passes if step.kind == kind] for kind in (BOOTSTRAP, REMASK, REVISE)
    ]
    drafts = min(DRAFT_PROGRAMS, max(2, plan.num_tokens // TOKENS_PER_PROGRAM))
    groups += _least_padding([step for step in plan.passes if step.kind == DRAFT], drafts)
    sizes = {}
    for group in filter(None, groups):
        targets = max(step.targets for step in group)
        committed = max(step.committed for step in group)
        draws_all = group[0].kind == DRAFT and ORDERS[plan.order].by_confidence
        sizes |= dict.fromkeys(
            group,
            Sizes(
                contexts=max(step.contexts for step in group),
                targets=targets,
                num_logits=targets if draws_all else committed,
                committed=committed,
            ),
        )
    return tuple(sizes[step] for step in plan.passes)


def programs(plan: Plan) -> set[tuple[str, Sizes]]:
    """Every (kind, sizes) that the plan needs: one compiled program each."""
    return {(step.kind, size) for step, size in zip(plan.passes, shared_sizes(plan))}


def partition_size(free: int, partitions: int, partition: int) -> int:
    """Tokens in one of `partitions` even partitions of `free` tokens; the first are larger by one
    where it does not divide.

    Note: mask_sampler.py:328 asserts that it divides.
    """
    return (free - partition + partitions - 1) // partitions


def _least_padding(passes: list[Pass], max_groups: int) -> list[list[Pass]]:
    """Cuts passes of falling target counts into at most `max_groups` runs with the least padding.

    The padding of a pass is the target count of the first of its run less its own. Dynamic
    programming: (passes so far, groups so far) -> (padded targets, ends of the groups).
    """
    best = {(0, 0): (0, ())}
    for groups in range(1, max_groups + 1):
        for end in range(1, len(passes) + 1):
            options = [
                (
                    best[start, groups - 1][0] + (end - start) * passes[start].targets,
                    (*best[start, groups - 1][1], end),
                )
                for start in range(end)
                if (start, groups - 1) in best
            ]
            if options:
                best[end, groups] = min(options)
    _, ends = min((best[key] for key in best if key[0] == len(passes)), default=(0, ()))
    return [passes[start:end] for start, end in zip((0, *ends), ends)]


def _bootstrap(count: int, num_tokens: int, num_known: int) -> list[Pass]:
    # Note: sample_vqgan_transformer_videos.py:43 runs the bootstrap at temperature 1, without top-k
    # and top-p.
    return [
        Pass(BOOTSTRAP, num_known + i, num_tokens - num_known - i, 1, temperature=1.0)
        for i in range(count)
    ]


def _draft(
    config: DecodingConfig, num_tokens: int, num_known: int, bootstrapped: int
) -> list[Pass]:
    passes = []
    free = num_tokens - num_known
    masked = free - bootstrapped
    remasks = config.remask_steps
    for step in range(1, config.draft_steps + 1):
        # Note: as in transformer.py:401 the schedule counts all free tokens, bootstrapped ones too,
        # so the first steps may leave more tokens masked than there are; those are skipped. The
        # official code runs the pass if the counts are equal, though it commits nothing; skipping
        # it changes no token's distribution.
        remaining = int(masked_count(config.mask_schedule, step / config.draft_steps, free))
        if remaining >= masked:
            continue
        if remaining <= config.remask_at * free and remasks and masked < free:
            passes += _remask(config, num_tokens, free, masked)
            remasks = 0
        choice_temperature = config.choice_temperature * (1 - step / config.draft_steps)
        passes.append(
            Pass(
                DRAFT,
                num_tokens - masked,
                masked,
                masked - remaining,
                temperature=config.temperature,
                choice_temperature=choice_temperature,
            )
        )
        masked = remaining
    return passes


def _remask(config: DecodingConfig, num_tokens: int, free: int, masked: int) -> list[Pass]:
    """The loop of ReMDM (Wang et al. 2025, section 4.2): at a constant number of masked tokens,
    each pass unmasks some tokens and masks as many others.
    """
    count = max(1, min(round(config.remask_share * free), masked, free - masked))
    step = Pass(REMASK, num_tokens - masked, masked, count, temperature=config.temperature)
    return [step] * config.remask_steps


def _revise(config: DecodingConfig, num_tokens: int, num_known: int, partitions: int) -> list[Pass]:
    passes = []
    for revise_round in range(config.revise_rounds):
        for partition in range(partitions):
            size = partition_size(num_tokens - num_known, partitions, partition)
            passes.append(
                Pass(
                    REVISE,
                    num_tokens - size,
                    size,
                    size,
                    temperature=config.revise_temperature,
                    revise_round=revise_round,
                    partition=partition,
                )
            )
    return passes
