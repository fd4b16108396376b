"""Plans commit every token once, follow the official mask counts, and the presets have the official
pass counts.
"""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from mebt_jax.config import default_config, from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.plan import (
    BOOTSTRAP,
    DRAFT,
    DRAFT_PROGRAMS,
    REMASK,
    REVISE,
    build_plan,
    programs,
    shared_sizes,
)
from mebt_jax.methods.masked.presets import PRESETS

VECTORS = np.load(Path(__file__).parent / "vectors" / "sampling.npz")
SETTINGS = dataclasses.replace(
    from_config_dict(default_config()).decoding,
    draft_steps=8,
    choice_temperature=4.0,
    top_k=0,
    bootstrap_steps=0,
    revise_rounds=0,
    revise_partitions=1,
    revise_temperature=0.5,
)


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith("masked/")])
def test_draft_follows_the_official_mask_counts(name):
    _, schedule, num_tokens, steps = name.split("/")
    plan = build_plan(
        dataclasses.replace(SETTINGS, mask_schedule=schedule, draft_steps=int(steps)),
        int(num_tokens),
    )
    masked = [step.targets - step.committed for step in plan.passes]
    official = [count for count in dict.fromkeys(VECTORS[name].tolist()) if count < int(num_tokens)]
    assert masked == official


@pytest.mark.parametrize(
    "num_tokens, num_known, bootstrap", [(64, 0, 0), (64, 10, 5), (50, 49, 64), (7, 0, 64)]
)
def test_every_unknown_token_is_committed_once(num_tokens, num_known, bootstrap):
    plan = build_plan(
        dataclasses.replace(SETTINGS, bootstrap_steps=bootstrap), num_tokens, num_known
    )
    known = num_known
    for step in plan.passes:
        assert (step.contexts, step.targets) == (known, num_tokens - known) and step.committed >= 1
        known += step.committed
    assert known == num_tokens
    assert sum(step.kind == BOOTSTRAP for step in plan.passes) == min(
        bootstrap, num_tokens - num_known
    )


def test_choice_temperature_falls_to_zero():
    passes = build_plan(SETTINGS, 512).passes
    np.testing.assert_allclose(
        [step.choice_temperature for step in passes], [4.0 * (1 - s / 8) for s in range(1, 9)]
    )


def test_revise_parts_cover_the_unknown_tokens_once_per_round():
    plan = build_plan(
        dataclasses.replace(SETTINGS, revise_rounds=2, revise_partitions=4), 64, num_known=10
    )
    revise = [step for step in plan.passes if step.kind == REVISE]
    assert [(step.revise_round, step.partition) for step in revise] == [
        (r, p) for r in range(2) for p in range(4)
    ]
    assert [step.targets for step in revise[:4]] == [14, 14, 13, 13]
    assert all(
        step.contexts + step.targets == 64 and step.committed == step.targets for step in revise
    )


@pytest.mark.parametrize(
    "name, grid, passes, executed",
    [
        ("sky16", (4, 16, 16), 36, 36),
        ("taichi16", (4, 16, 16), 80, 79),
        ("ucf16", (4, 16, 16), 144, 140),
        ("sky128", (32, 16, 16), 100, 98),
        ("taichi128", (32, 16, 16), 104, 102),
        ("ucf128", (32, 16, 16), 160, 158),
    ],
)
def test_presets_have_the_official_pass_counts(name, grid, passes, executed):
    preset = PRESETS[name]
    assert preset.num_passes == passes
    plan = build_plan(
        dataclasses.replace(SETTINGS, **dataclasses.asdict(preset)), int(np.prod(grid))
    )
    # Where the cosine is flat, a draft step may ask for no fewer masked tokens than there are, and
    # is skipped.
    assert plan.num_passes == executed
    assert sum(step.kind == DRAFT for step in plan.passes) == preset.draft_steps - (
        passes - executed
    )


@pytest.mark.parametrize("name", PRESETS)
def test_the_config_of_the_same_name_samples_by_the_preset(name):
    settings = importlib.import_module(f"configs.{name}").get_config().decoding
    preset = dataclasses.asdict(PRESETS[name])
    assert {field: settings[field] for field in preset} == preset
    assert (settings.mask_schedule, settings.temperature, settings.top_p) == ("cosine", 1.0, 1.0)


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_a_long_plan_needs_few_programs_and_little_padding(order):
    settings = dataclasses.replace(
        SETTINGS, order=order, **dataclasses.asdict(PRESETS["ucf128"]), remask_steps=5
    )
    plan = build_plan(settings, 8192)
    assert plan.num_passes == 163 and len(programs(plan)) <= DRAFT_PROGRAMS + 3
    padded = 0
    for step, sizes in zip(plan.passes, shared_sizes(plan)):
        assert (
            step.contexts <= sizes.contexts
            and step.targets <= sizes.targets
            and step.committed <= sizes.committed
        )
        assert sizes.num_logits == (
            sizes.targets if step.kind == DRAFT and order == "confidence" else sizes.committed
        )
        padded += sizes.targets - step.targets
    assert padded < 0.03 * sum(step.targets for step in plan.passes)


def test_remasking_hides_as_many_tokens_as_it_commits():
    plan = build_plan(
        dataclasses.replace(SETTINGS, remask_steps=3, remask_at=0.5, remask_share=0.1), 64, 4
    )
    kinds = [step.kind for step in plan.passes]
    first = kinds.index(REMASK)
    assert kinds.count(REMASK) == 3 and kinds[first : first + 3] == [REMASK] * 3
    assert {step.committed for step in plan.passes[first : first + 3]} == {6}
    assert (
        plan.passes[first].targets == plan.passes[first + 3].targets
    )  # the draft goes on where it was
    assert plan.passes[first - 1].committed < plan.passes[first - 1].targets


def test_equal_settings_give_one_compiled_program_and_others_another():
    traces = []

    @functools.partial(jax.jit, static_argnames="plan")
    def run(x, *, plan):
        traces.append(plan)
        return x + plan.num_passes

    for settings in (SETTINGS, SETTINGS, dataclasses.replace(SETTINGS, draft_steps=3)):
        run(0, plan=build_plan(settings, 64))
    assert len(traces) == 2


def test_few_tokens_are_revised_one_by_one():
    plan = build_plan(
        dataclasses.replace(SETTINGS, revise_rounds=2, revise_partitions=32), 64, num_known=61
    )
    assert (
        plan.partitions == 3
        and [step.targets for step in plan.passes if step.kind == REVISE] == [1] * 6
    )


def test_a_plan_with_nothing_to_draw_is_refused():
    with pytest.raises(UserError, match="nothing to sample"):
        build_plan(SETTINGS, 64, 64)
