"""Mask-ratio schedules: end points, monotony, and the official program's counts."""

from pathlib import Path

import numpy as np
import pytest

from mebt_jax.methods.masked.schedules import SCHEDULES, masked_count


@pytest.mark.parametrize("name", SCHEDULES)
def test_falls_from_all_to_none(name):
    counts = masked_count(name, np.linspace(0.0, 1.0, 101), 8192)
    assert counts[0] == 8192 and counts[-1] == 0
    assert np.all(np.diff(counts) <= 0)


def test_counts_equal_the_official_ones():
    with np.load(Path(__file__).parent / "vectors" / "schedules.npz") as file:
        stored = {name: file[name] for name in file if name.startswith("masked/")}
    assert stored
    for name, expected in stored.items():
        _, schedule, tokens, steps = name.split("/")
        progress = np.arange(1, int(steps) + 1) / int(steps)
        np.testing.assert_array_equal(
            masked_count(schedule, progress, int(tokens)), expected, err_msg=name
        )
