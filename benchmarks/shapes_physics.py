"""Scores of the physics of moving shapes, for held-out clips and for clips with known defects, as a
table.

    JAX_PLATFORMS=cpu python -m benchmarks.shapes_physics [--clips 32] [--resolution 32]
"""

import argparse

import numpy as np
from scipy import ndimage

from mebt_jax.data.sources import VALIDATION_OFFSET
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.metrics.worlds import shapes_detection, shapes_physics

FRAMES = 16
COLUMNS = ("score", "shapes", "motion", "identity", "form", "background")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=32)
    options = parser.parse_args()
    source = MovingShapes(
        options.clips, FRAMES, options.resolution, seed=0, offset=VALIDATION_OFFSET
    )
    real = np.stack([source[i]["video"] for i in range(options.clips)])  # [n, F, H, W, 3]
    rng = np.random.default_rng(0)
    kinds = {
        "as they are": real,
        "colours off by a tenth": np.rint(0.9 * real + 0.1 * 128).astype(np.uint8),
        "noise of 10 levels": np.rint(real + rng.normal(0, 10, real.shape))
        .clip(0, 255)
        .astype(np.uint8),
        "blurred, sigma 1 pixel": blurred(real, 1),
        "blurred, sigma 2 pixels": blurred(real, 2),
        "shapes change colour half-way": recoloured(real),
        "two clips joined in the middle": np.concatenate(
            [real[:, : FRAMES // 2], np.roll(real, 1, 0)[:, FRAMES // 2 :]], axis=1
        ),
        "frames shuffled": np.stack([clip[rng.permutation(FRAMES)] for clip in real]),
        "first frame held": np.repeat(real[:, :1], FRAMES, axis=1),
    }
    print(
        f"| clips ({options.clips} held out, {FRAMES} frames of "
        f"{options.resolution}x{options.resolution}) | {' | '.join(COLUMNS)} |\n"
        f"|{'---|' * (1 + len(COLUMNS))}"
    )
    for name, videos in kinds.items():
        scores = shapes_physics.physics(videos)
        print(
            f"| {name} | {' | '.join(f'{np.nanmean(scores[column]):.3f}' for column in COLUMNS)} |",
            flush=True,
        )


def blurred(videos: np.ndarray, sigma: float) -> np.ndarray:
    return np.rint(ndimage.gaussian_filter(videos.astype(float), (0, 0, sigma, sigma, 0))).astype(
        np.uint8
    )


def recoloured(videos: np.ndarray) -> np.ndarray:
    """Every shape, its smooth edge too, gets the next colour of the palette in the second half."""
    changed, palette = videos.copy(), shapes_detection.PALETTE
    late = videos[:, FRAMES // 2 :]
    distance = np.linalg.norm(late[..., None, :] - palette, axis=-1)  # [n, F / 2, H, W, colours]
    other = palette[(distance.argmin(axis=-1) + 1) % len(palette)]
    changed[:, FRAMES // 2 :] = np.where(distance.min(axis=-1, keepdims=True) < 60, other, late)
    return changed


if __name__ == "__main__":
    main()
