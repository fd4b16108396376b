import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.data import clips


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_every_level_survives_the_way_to_float_and_back(asarray):
    levels = asarray(np.arange(256, dtype=np.uint8))
    values = clips.to_float(levels)
    assert values.dtype == np.float32
    assert float(values.min()) == -0.5 and float(values.max()) == 0.5
    np.testing.assert_array_equal(clips.to_uint8(values), levels)


def test_to_uint8_clips_what_is_out_of_range():
    np.testing.assert_array_equal(
        clips.to_uint8(np.array([-2.0, 0.0, 2.0], np.float32)), [0, 128, 255]
    )


@pytest.mark.parametrize("shape", [(20, 41), (41, 20), (7, 5)])
def test_square_is_the_centre_at_any_size(shape):
    image = np.zeros((*shape, 3), np.uint8)
    image[shape[0] // 2, :] = image[:, shape[1] // 2] = 255  # a cross through the centre
    cut = clips.square(image, 10)
    assert cut.shape == (10, 10, 3)
    assert cut[4:6, 4:6].mean() > cut.mean()
    np.testing.assert_allclose(cut.astype(int), cut[::-1, ::-1].astype(int), atol=255 * 0.75)


def test_a_square_of_the_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(clips.square(image, 12), image)


def test_jpeg_round_trip_keeps_rgb_order():
    image = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(
        clips.decode_images([clips.encode_image(image, 95)])[0].astype(int), image, atol=3
    )


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_what_is_no_image_decodes_to_none(content):
    assert clips.decode_image(content) is None


def test_span_counts_the_frames_between():
    assert [clips.span(16, 1), clips.span(16, 4), clips.span(1, 4)] == [16, 61, 1]
