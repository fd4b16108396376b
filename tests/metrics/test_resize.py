"""Each resize rule places the centres of its pixels where its program does."""

import numpy as np
import pytest

from mebt_jax.metrics.networks.resize import RULES, resize


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("half_pixel", [0, 2.5, 7.5, 10]),
        ("corner", [0, 5, 10, 10]),
        ("aligned", [0, 10 / 3, 20 / 3, 10]),
    ],
)
def test_two_pixels_become_four(rule, expected):
    row = np.array([0, 10], np.uint8)
    wide = resize(row.reshape(1, 1, 2, 1), (1, 4), rule)
    np.testing.assert_allclose(wide.reshape(-1), expected, rtol=1e-6)
    np.testing.assert_allclose(
        resize(row.reshape(1, 2, 1, 1), (4, 1), rule).reshape(-1), expected, rtol=1e-6
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_own_size_changes_nothing_and_smaller_does_not_blur(rule):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 6, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(frames, (6, 9), rule), frames)
    shrunk = resize(frames, (2, 3), rule)  # by 3 without antialiasing: single pixels
    first = {"half_pixel": (1, 1), "corner": (0, 0), "aligned": (0, 0)}[rule]
    np.testing.assert_allclose(shrunk[:, :, 0, 0], frames[:, :, first[0], first[1]], rtol=1e-6)
