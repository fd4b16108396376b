"""Physics of moving shapes: real clips keep every law, each way of breaking one lowers its score,
little harm costs little.
"""

import cv2
import numpy as np
import pytest

from mebt_jax.data.sources import VALIDATION_OFFSET
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.metrics.worlds import shapes_detection
from mebt_jax.metrics.worlds.shapes_physics import (
    DEFINITIONS,
    LAWS,
    physics,
)

CLIPS, FRAMES = 16, 16
SOURCE = MovingShapes(CLIPS, FRAMES, resolution=32, seed=0, offset=VALIDATION_OFFSET)
REAL = np.stack([SOURCE[i]["video"] for i in range(CLIPS)])  # [n, F, H, W, 3]


def means(videos: np.ndarray) -> dict[str, float]:
    return {
        name: float(np.nanmean(values))
        for name, values in physics(videos).items()
        if np.isfinite(values).any()
    }


@pytest.fixture(scope="module")
def real():
    return means(REAL)


def recoloured(video: np.ndarray) -> np.ndarray:
    """The shapes change colour in the middle of the clip."""
    video = video.copy()
    for frame in video[FRAMES // 2 :]:
        # [H, W, colours]
        distance = np.linalg.norm(frame[..., None, :] - shapes_detection.PALETTE, axis=-1)
        shape = distance.min(axis=-1) < 60
        frame[shape] = shapes_detection.PALETTE[
            (distance.argmin(axis=-1)[shape] + 1) % len(shapes_detection.PALETTE)
        ]
    return video


def blurred(video: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video])


def test_real_clips_keep_every_law(real):
    scores = physics(REAL)
    assert set(scores) == set(DEFINITIONS) and all(
        len(values) == CLIPS for values in scores.values()
    )
    assert real["score"] > 0.98 and scores["score"].min() > 0.95
    assert (
        min(real[law] for law in LAWS) > 0.97
        and real["occlusion"] > 0.95
        and real["bounce_error"] < 0.01
    )
    assert np.isfinite(scores["occlusion"]).any() and np.isfinite(scores["bounce_error"]).any()


def test_larger_frames_and_longer_clips_of_the_world_too():
    source = MovingShapes(3, 40, resolution=64, seed=1)
    assert physics(source[i]["video"] for i in range(3))["score"].min() > 0.95


def test_shuffled_frames_break_motion_and_drift(real):
    rng = np.random.default_rng(0)
    scores = means([video[rng.permutation(FRAMES)] for video in REAL])
    assert (
        scores["score"] < 0.75
        and scores["motion"] < 0.6
        and scores["background"] < 0.85
        and scores["form"] < 0.6
    )


def test_a_change_of_colour_breaks_identity_and_number(real):
    scores = means([recoloured(video) for video in REAL])
    assert (
        scores["score"] < 0.85
        and scores["identity"] < 0.85
        and scores["occlusion"] < 0.8
        and scores["shapes"] < 0.75
    )
    assert scores["background"] > 0.95


def test_blur_breaks_form_little_by_little(real):
    little, much = (means([blurred(video, sigma) for video in REAL]) for sigma in (1.0, 2.0))
    assert real["form"] - 0.05 > little["form"] > much["form"] + 0.1
    assert real["score"] > little["score"] > 0.85 > much["score"] > 0.5
    assert little["motion"] > 0.9


def test_standing_still_and_jumping_to_another_clip_are_no_motion():
    assert means(np.repeat(REAL[:, :1], FRAMES, axis=1))["motion"] < 0.3
    joined = means(np.concatenate([REAL[:-1, : FRAMES // 2], REAL[1:, FRAMES // 2 :]], axis=1))
    assert joined["score"] < 0.85 and joined["shapes"] < 0.8


def test_slightly_wrong_colours_and_noise_cost_little():
    tinted = (REAL * np.array([0.9, 1.05, 0.95]) + 5).clip(0, 255).astype(np.uint8)
    noisy = (REAL + np.random.default_rng(0).normal(0, 8, REAL.shape)).clip(0, 255).astype(np.uint8)
    assert means(tinted)["score"] > 0.95 and 0.88 < means(noisy)["score"] < 0.99


def test_fragments_get_less_the_fewer_there_are():
    rng = np.random.default_rng(0)
    background = np.median(REAL, axis=(2, 3), keepdims=True).astype(np.uint8)
    holes = rng.random((CLIPS, FRAMES, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)[..., None]
    scores = [means(np.where(holes < kept, REAL, background))["score"] for kept in (0.9, 0.6, 0.3)]
    assert 0.95 > scores[0] > scores[1] + 0.1 > scores[2] + 0.2


def test_clips_without_shapes_count_as_far_as_the_world_has_them():
    background = np.broadcast_to(np.median(REAL, axis=(2, 3), keepdims=True), REAL.shape).astype(
        np.uint8
    )
    barred = np.where((REAL == 128).all(axis=(1, 2, 4), keepdims=True), np.uint8(128), background)
    expected = shapes_detection.hidden_share(FRAMES, 0.3) * CLIPS + 1
    scores = physics(barred)
    np.testing.assert_allclose(scores["shapes"], expected / CLIPS)
    assert scores["score"].mean() < 0.4 and physics([*REAL, barred[0]])["score"].mean() > 0.98


def test_clips_of_anything_else_get_scores_between_0_and_1():
    videos = [
        np.zeros((4, 32, 32, 3), np.uint8),
        np.full((1, 32, 32, 3), 128, np.uint8),
        np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8),
    ]
    scores = physics(videos)
    for law in (*LAWS, "score"):
        assert (scores[law] >= 0).all() and (scores[law] <= 1).all(), law
    assert scores["score"].max() < 0.1
