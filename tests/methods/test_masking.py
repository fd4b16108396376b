"""Context and target sets: exact counts, disjoint, inside the interval, uniform, and a function of
(seed, step).
"""

import dataclasses

import jax
import numpy as np
import pytest

from mebt_jax.config import default_config, from_config_dict
from mebt_jax.methods.masked.masking import draw_masking, mask_tokens
from mebt_jax.methods.masked.shape_buckets import StepShape

MASKING = from_config_dict(default_config()).method
GRID = (4, 2, 3)
TOKENS = 24
mask_jit = jax.jit(mask_tokens, static_argnames="shape")


def tokens_that_name_their_position(batch):
    return np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (batch, TOKENS)).reshape(batch, *GRID)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("budget", [0, 5])
def test_sets_are_exact_disjoint_and_inside_the_interval(per_sample, budget):
    config = dataclasses.replace(
        MASKING, ratio_per_sample=per_sample, target_budget=budget, interval_schedule="uniform"
    )
    for step in range(3):
        draw = draw_masking(config, GRID, batch_size=4, seed=0, step=step)
        examples = mask_jit(
            jax.random.key(step),
            tokens_that_name_their_position(4),
            draw.interval,
            draw.num_contexts,
            draw.num_targets,
            shape=draw.shape,
        )
        assert examples.tokens.context_tokens.shape == (
            4,
            draw.shape.contexts,
        ) and examples.target_tokens.shape == (4, draw.shape.targets)
        for b in range(4):
            context = np.asarray(examples.tokens.context_positions[b])[
                examples.tokens.context_valid[b]
            ]
            target = np.asarray(examples.tokens.target_positions[b])[
                examples.tokens.target_valid[b]
            ]
            assert len(context) == draw.num_contexts[b] and len(target) == draw.num_targets[b]
            used = np.concatenate([context, target])
            assert len(np.unique(used)) == len(used)
            frames = used // (GRID[1] * GRID[2])
            assert (
                frames.max() - frames.min() < draw.interval
                and used.min() >= 0
                and used.max() < TOKENS
            )
            if budget == 0:  # all tokens of the interval are in one of the sets
                assert len(used) == draw.interval * GRID[1] * GRID[2]
        for name in ("context", "target"):
            seen = examples.tokens
            valid, positions = getattr(seen, f"{name}_valid"), getattr(seen, f"{name}_positions")
            tokens = seen.context_tokens if name == "context" else examples.target_tokens
            np.testing.assert_array_equal(tokens, np.where(valid, positions, 0))


def test_tokens_and_interval_starts_are_uniform():
    batch, shape = 6000, StepShape(interval=2, contexts=12, targets=12)
    counts = np.full(batch, 3, np.int32)
    examples = mask_jit(
        jax.random.key(0),
        tokens_that_name_their_position(batch),
        2,
        counts,
        2 * counts,
        shape=shape,
    )
    for positions, valid, size in (
        (examples.tokens.context_positions, examples.tokens.context_valid, 3),
        (examples.tokens.target_positions, examples.tokens.target_valid, 6),
    ):
        frequencies = (
            np.bincount(np.asarray(positions)[np.asarray(valid)], minlength=TOKENS) / batch
        )
        # Intervals of 2 of 4 frames start at frame 0, 1 or 2: the inner frames are in twice as many
        # as the outer ones.
        expected = size / 12 * np.repeat([1 / 3, 2 / 3, 2 / 3, 1 / 3], 6)
        np.testing.assert_allclose(frequencies, expected, atol=5 * np.sqrt(0.25 / batch))
    starts = np.asarray(examples.tokens.target_positions)[:, 0] // 6
    assert not np.all(starts == starts[0])


def test_the_bucket_changes_only_the_padding():
    tokens, counts = tokens_that_name_their_position(2), np.array([5, 3], np.int32)
    small = mask_jit(jax.random.key(1), tokens, 3, counts, counts, shape=StepShape(3, 5, 5))
    large = mask_jit(jax.random.key(1), tokens, 3, counts, counts, shape=StepShape(3, 18, 10))
    np.testing.assert_array_equal(
        small.tokens.context_positions, large.tokens.context_positions[:, :5]
    )
    np.testing.assert_array_equal(small.target_tokens, large.target_tokens[:, :5])
    assert (
        not large.tokens.context_valid[:, 5:].any() and not large.tokens.target_valid[:, 5:].any()
    )


def test_draw_is_a_function_of_seed_and_step():
    def draw(seed, step):
        return draw_masking(
            dataclasses.replace(MASKING, ratio_per_sample=True), (32, 16, 16), 8, seed, step
        )

    first, again = draw(3, 7), draw(3, 7)
    assert (first.shape, first.interval) == (again.shape, again.interval)
    np.testing.assert_array_equal(first.num_contexts, again.num_contexts)
    for other in (draw(4, 7), draw(3, 8)):
        assert not np.array_equal(first.num_contexts, other.num_contexts)


def test_ratio_range_and_budget():
    grid = (32, 16, 16)
    config = dataclasses.replace(
        MASKING, ratio_min=0.5, ratio_max=0.5, interval_schedule="longest", target_budget=1000
    )
    draw = draw_masking(config, grid, batch_size=2, seed=0, step=0)
    np.testing.assert_array_equal(draw.num_contexts, [4096, 4096])  # linear: r = 1 - u
    np.testing.assert_array_equal(draw.num_targets, [1000, 1000])
    assert draw.shape == StepShape(interval=32, contexts=4096, targets=1000)


def test_one_ratio_per_batch_unless_asked():
    for per_sample in (False, True):
        config = dataclasses.replace(MASKING, ratio_per_sample=per_sample)
        counts = draw_masking(config, (32, 16, 16), batch_size=8, seed=0, step=0).num_contexts
        assert (len(np.unique(counts)) > 1) == per_sample


def test_at_least_one_target_at_the_end_of_the_ratio_range():
    config = dataclasses.replace(MASKING, ratio_min=1.0, ratio_max=1.0)
    assert draw_masking(config, GRID, batch_size=1, seed=0, step=0).num_targets == [1]
