"""The ladder of fixed sizes: every draw lands in it, fits, and costs in proportion to its
interval.
"""

import dataclasses

import pytest

from mebt_jax.config import default_config, from_config_dict
from mebt_jax.methods.masked.masking import draw_masking
from mebt_jax.methods.masked.shape_buckets import all_shapes, interval_buckets, step_shape

MASKING = from_config_dict(default_config()).method


def test_buckets():
    assert interval_buckets(32) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    assert interval_buckets(20) == (1, 2, 3, 4, 6, 8, 12, 16, 20)
    assert interval_buckets(1) == (1,)


@pytest.mark.parametrize("bucket_steps", [1, 3, 4, 11])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("budget", [0, 17])
@pytest.mark.parametrize("grid", [(4, 4, 4), (7, 3, 1), (1, 1, 1)])
def test_every_draw_is_listed_and_fits(bucket_steps, per_sample, budget, grid):
    config = dataclasses.replace(
        MASKING,
        bucket_steps=bucket_steps,
        ratio_per_sample=per_sample,
        target_budget=budget,
        interval_schedule="uniform",
    )
    shapes = set(all_shapes(config, grid))
    assert len(shapes) <= len(interval_buckets(grid[0])) * bucket_steps ** (2 if per_sample else 1)
    for step in range(300):
        draw = draw_masking(config, grid, batch_size=3, seed=1, step=step)
        assert draw.shape in shapes
        assert draw.interval <= draw.shape.interval
        assert (
            draw.num_contexts.max() <= draw.shape.contexts
            and draw.num_targets.max() <= draw.shape.targets
        )
        assert draw.num_targets.min() >= 1 and draw.num_contexts.min() >= 0
        assert draw.shape.contexts >= 1 and draw.shape.targets >= 1


@pytest.mark.parametrize("bucket_steps", [1, 3, 4, 11])
def test_every_possible_count_fits(bucket_steps):
    config = dataclasses.replace(MASKING, bucket_steps=bucket_steps)
    grid = (3, 3, 2)
    shapes = set(all_shapes(config, grid))
    for interval in range(1, 4):
        for contexts in range(interval * 6):
            shape = step_shape(config, grid, interval, contexts, interval * 6 - contexts)
            assert shape in shapes
            assert shape.contexts >= contexts and shape.targets >= interval * 6 - contexts


def test_slots_are_in_proportion_to_the_interval():
    shapes = all_shapes(MASKING, (32, 16, 16))
    assert len(shapes) == 66
    for shape in shapes:
        padding = 1 / 16 if shape.interval == 32 else 1 / 4
        assert shape.contexts + shape.targets <= (1 + padding) * shape.interval * 256


def test_longest_has_whole_clips_only():
    shapes = all_shapes(dataclasses.replace(MASKING, interval_schedule="longest"), (32, 16, 16))
    assert len(shapes) == MASKING.bucket_steps and {shape.interval for shape in shapes} == {32}
