"""The plain numbers of clips are of values in [0, 1], and each says what it is."""

import jax
import numpy as np
import pytest

from mebt_jax.metrics.clip_numbers import CLIP_NUMBERS, PAIR_NUMBERS, clip_number

RNG = np.random.default_rng(0)
REAL, OTHER = RNG.integers(0, 256, (2, 3, 4, 16, 16, 3), dtype=np.uint8)  # two of [B, F, H, W, 3]


def values(measure, *clips):
    return jax.jit(measure.function)(measure.weights, *clips)


def test_numbers_of_pairs():
    difference = (REAL.astype(np.float64) - OTHER) / 255
    expected = {
        "l1": np.abs(difference).mean(axis=(1, 2, 3, 4)),
        "psnr": -10 * np.log10(np.square(difference).mean(axis=(1, 2, 3, 4))),
    }
    for name, numbers in expected.items():
        np.testing.assert_allclose(values(PAIR_NUMBERS[name], REAL, OTHER), numbers, rtol=1e-5)
    perfect = {name: values(measure, REAL, REAL) for name, measure in PAIR_NUMBERS.items()}
    for name, best in {"psnr": 100.0, "ssim": 1.0, "l1": 0.0}.items():
        np.testing.assert_allclose(perfect[name], [best] * 3, atol=1e-5)


def test_a_number_of_single_clips():
    brightness = clip_number("brightness", lambda x: x.mean(axis=(1, 2, 3, 4)), "of {clips}")
    np.testing.assert_allclose(values(brightness, REAL), REAL.mean(axis=(1, 2, 3, 4)) / 255, 1e-5)


@pytest.mark.parametrize("measure", [*CLIP_NUMBERS.values(), *PAIR_NUMBERS.values()])
def test_every_number_says_of_which_clips_it_is_the_mean(measure):
    assert "a few clips" in measure.definition.format(clips="a few clips")
