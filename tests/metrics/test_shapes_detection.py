"""What is found in clips of moving shapes is what their scenes say."""

import numpy as np

from mebt_jax.data.sources import VALIDATION_OFFSET
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.metrics.worlds import shapes_detection
from mebt_jax.metrics.worlds.shapes_physics import track, tracked_colours

SOURCE = MovingShapes(6, frames=16, resolution=32, seed=0, offset=VALIDATION_OFFSET)


def test_found_shapes_are_those_of_the_scene():
    for i in range(6):
        seen, scene = shapes_detection.detect(SOURCE[i]["video"]), SOURCE.describe(i)
        shown = [
            shape for shape, visible in zip(scene.shapes, scene.visible) if visible.max() > 0.5
        ]
        tracks = {
            shapes_detection.COLOUR_NAMES[colour]: track(seen, colour)
            for colour in tracked_colours(seen)
        }
        assert set(tracks) == {shape.colour for shape in shown}
        for shape in shown:
            found = tracks[shape.colour]
            assert found.kind == shape.kind
            assert np.median(np.linalg.norm(found.path - shape.centres, axis=1)) < 0.5
        np.testing.assert_array_equal(np.flatnonzero(seen.bar), np.arange(*scene.bar))


def test_a_shape_covers_its_area_wherever_it_is():
    centres = np.array([[16.0, 16.0], [10.5, 20.25], [-40.0, 16.0]])
    for kind in ("circle", "square"):  # of the same area
        cover = shapes_detection.render(kind, 5.0, centres, side=32)
        assert cover.shape == (3, 32, 32) and 0 <= cover.min() and cover.max() <= 1
        np.testing.assert_allclose(cover.sum(axis=(1, 2)), [25 * np.pi] * 2 + [0], rtol=0.05)
