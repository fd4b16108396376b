"""What each task gives and hides, and the errors for what does not fit. Clips of 16 frames of
16x16, tokens of 4x4x4.
"""

import numpy as np
import pytest

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.plan import build_plan
from mebt_jax.tasks import masks
from tests.tiny_config import tiny_config

CONFIG = from_config_dict(tiny_config(data__frames=16))
VIDEO = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)


def box_mask():
    drawn = np.zeros((16, 16, 16), bool)
    drawn[5, 0, 3] = drawn[8:, 4:12, 4:12] = True
    return drawn


@pytest.mark.parametrize(
    "task, known",
    [
        (masks.generate(CONFIG), lambda t, h, w: np.zeros_like(t, bool)),
        (masks.predict(CONFIG, 8), lambda t, h, w: t < 2),
        (masks.interpolate(CONFIG, 4, 8), lambda t, h, w: (t < 1) | (t >= 2)),
        (
            masks.edit(CONFIG, (0, 4, 3, 4, 8, 16)),
            lambda t, h, w: ~((t == 0) & (h == 0) & (w >= 2)),
        ),
        (
            masks.fill(CONFIG, box_mask()),
            lambda t, h, w: (
                ~((t == 1) & (h == 0) & (w == 0) | (t >= 2) & (h > 0) & (h < 3) & (w > 0) & (w < 3))
            ),
        ),
        (masks.continuation(CONFIG, 12), lambda t, h, w: t < 3),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_token_is_known_if_all_of_its_pixels_are(task, known):
    np.testing.assert_array_equal(task.known, known(*np.indices((4, 4, 4))))
    assert task.num_known == task.known.sum()


@pytest.mark.parametrize(
    "task",
    [masks.predict(CONFIG, 8), masks.interpolate(CONFIG, 4, 8), masks.fill(CONFIG, box_mask())],
    ids=lambda task: task.name,
)
def test_what_is_drawn_is_not_shown(task):
    other = np.where(task.drawn[..., None], 255 - VIDEO, VIDEO)
    shown = task.visible(VIDEO)
    np.testing.assert_array_equal(shown, task.visible(other))
    np.testing.assert_array_equal(shown[~task.drawn], VIDEO[~task.drawn])


def test_an_edit_shows_the_whole_video_and_a_prediction_its_last_frame_on():
    np.testing.assert_array_equal(masks.edit(CONFIG, (0, 4, 0, 4, 0, 4)).visible(VIDEO), VIDEO)
    shown = masks.predict(CONFIG, 8).visible(VIDEO)
    np.testing.assert_array_equal(shown[8:], np.broadcast_to(VIDEO[7], shown[8:].shape))
    np.testing.assert_array_equal(masks.predict(CONFIG, 8).visible(VIDEO[:8]), shown)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: masks.predict(CONFIG, 20), "given_frames is 20.*from 4 to 12"),
        (lambda: masks.predict(CONFIG, 0), "given_frames is 0"),
        (lambda: masks.predict(CONFIG, 6), "use a multiple, such as 8"),
        (lambda: masks.interpolate(CONFIG, 8, 8), "leave nothing to draw"),
        (lambda: masks.interpolate(CONFIG, 4, 16), "given_last_frames is 16"),
        (lambda: masks.continuation(CONFIG, 16), "overlap_frames is 16"),
        (
            lambda: masks.fill(CONFIG, np.zeros((8, 8), bool)),
            r"mask has shape \(8, 8\).*\[16, 16\]",
        ),
        (lambda: masks.edit(CONFIG, (0, 4, 8, 20, 0, 4)), "region is"),
        (lambda: masks.predict(CONFIG, 8).visible(VIDEO[:4]), "has 4 frames"),
        (lambda: masks.predict(CONFIG, 8).visible(VIDEO[:, :8]), "clips are uint8"),
        (lambda: build_plan(CONFIG.decoding, 64, 65), "65 tokens are given"),
        (
            lambda: masks.from_config(from_config_dict(tiny_config(sample__task="edit"))),
            "needs a video",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
