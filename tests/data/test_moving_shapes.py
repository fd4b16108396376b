import numpy as np
import pytest

from mebt_jax.data.worlds.moving_shapes import BAR_COLOUR, COLOURS, MovingShapes, bounce


def test_a_clip_follows_from_seed_and_index():
    first, again = MovingShapes(10, 16, 32, seed=3), MovingShapes(10_000, 16, 32, seed=3)
    for i in (0, 9):
        np.testing.assert_array_equal(first[i]["video"], again[i]["video"])
        assert first[i]["index"] == i
    assert (MovingShapes(10, 16, 32, seed=4)[0]["video"] != first[0]["video"]).any()
    np.testing.assert_array_equal(
        MovingShapes(10, 16, 32, seed=3, offset=5)[0]["video"], first[5]["video"]
    )


@pytest.mark.parametrize(("frames", "resolution"), [(1, 8), (16, 32), (40, 48)])
def test_shape_and_type(frames, resolution):
    video = MovingShapes(1, frames, resolution, seed=0)[0]["video"]
    assert video.shape == (frames, resolution, resolution, 3) and video.dtype == np.uint8


def test_an_index_beyond_the_end_raises():
    with pytest.raises(IndexError):
        MovingShapes(3, 16, 32, seed=0)[3]


def test_bounce_is_a_straight_path_folded_between_the_walls():
    np.testing.assert_allclose(
        bounce(np.array([0.5, 0.9, 1.3, 1.9, -0.2, -1.1]), 0, 1), [0.5, 0.9, 0.7, 0.1, 0.2, 0.9]
    )


def test_shapes_stay_inside_and_keep_their_speed():
    source = MovingShapes(40, 64, 32, seed=1)
    for i in range(40):
        for shape in source.describe(i).shapes:
            assert (
                shape.centres.min() >= shape.radius - 1e-9
                and shape.centres.max() <= 32 - shape.radius + 1e-9
            )
            steps = np.abs(
                np.diff(shape.centres, axis=0)
            )  # a step that meets a wall is shorter along that axis
            assert (steps <= steps.max(0) + 1e-9).all() and np.isclose(
                steps, steps.max(0)
            ).mean() > 0.8


def test_the_truth_is_what_the_picture_shows():
    source = MovingShapes(60, 16, 32, seed=2)
    for i in range(60):
        scene, video = source.describe(i), source[i]["video"]
        assert (video[:, :, slice(*scene.bar)] == BAR_COLOUR).all()
        drawn = []
        for shape, visible in zip(scene.shapes, scene.visible):
            close = np.abs(video.astype(int) - COLOURS[shape.colour]).sum(-1) < 12  # [F, H, W]
            drawn.append(close)
            area = {"circle": np.pi, "square": 4 * 0.886**2, "triangle": 2.0}[
                shape.kind
            ] * shape.radius**2
            # All pixels that are whole inside have the pure colour, and none outside the visible
            # part has.
            assert (close.sum((1, 2)) <= area * visible + 1e-3).all()
            assert (close.sum((1, 2)) >= 0.4 * area * visible)[visible > 0.7].all()
            for frame in np.flatnonzero(visible > 0.99):
                rows, columns = np.nonzero(close[frame])
                assert abs(columns.mean() + 0.5 - shape.centres[frame, 0]) < 1
        assert not np.logical_and.reduce(drawn).any() or len(drawn) == 1


def test_shapes_come_out_from_behind_the_bar_as_they_went_in():
    source = MovingShapes(100, 16, 32, seed=0)
    returns = 0
    for i in range(100):
        scene, video = source.describe(i), source[i]["video"]
        for shape, visible in zip(scene.shapes, scene.visible):
            hidden = np.flatnonzero(visible < 0.15)
            if (
                len(hidden) == 0
                or visible[: hidden[0]].max(initial=0) < 0.9
                or visible[hidden[-1] :].max() < 0.9
            ):
                continue
            returns += 1
            after = hidden[-1] + int(visible[hidden[-1] :].argmax())
            x, y = shape.centres[after].astype(int)
            assert np.abs(video[after, y, x].astype(int) - COLOURS[shape.colour]).max() <= 2
    assert returns >= 15  # in 16 frames, of about 150 shapes


def test_a_clip_has_two_shapes_of_different_colour():
    scenes = [MovingShapes(60, 2, 32, seed=5).describe(i) for i in range(60)]
    assert all(
        len(scene.shapes) == 2 == len({shape.colour for shape in scene.shapes}) for scene in scenes
    )
    assert {shape.kind for scene in scenes for shape in scene.shapes} == {
        "circle",
        "square",
        "triangle",
    }


def test_the_background_changes_evenly_over_the_whole_clip():
    for i in range(20):
        background = MovingShapes(20, 16, 32, seed=6).describe(i).background.astype(int)
        assert (background[0] != background[-1]).any()
        even = np.linspace(background[0], background[-1], 16)
        assert np.abs(background - even).max() <= 1
