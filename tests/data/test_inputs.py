"""Videos and masks as users give them: files, folders, .npy, images, and what is none of these."""

import numpy as np
import pytest
from PIL import Image

from mebt_jax.data import inputs
from mebt_jax.errors import UserError


def ramp(frames):
    """Frame i has level 4 * i."""
    levels = (4 * np.arange(frames)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (frames, 16, 16, 3)))


def test_a_file_and_its_folder_give_the_first_clip(tmp_path, write_video, make_config):
    config = make_config(frame_stride=3)  # 8 frames reach over 22
    path = write_video(tmp_path / "videos" / "a.mkv", ramp(30))
    for given in (path, path.parent):
        (video,) = inputs.find_inputs(str(given))
        assert video.name == str(path)
        np.testing.assert_array_equal(inputs.read_input(video, config), ramp(30)[:22:3])
    (short,) = inputs.find_inputs(str(write_video(tmp_path / "short.mkv", ramp(8))))
    np.testing.assert_array_equal(inputs.read_input(short, config), ramp(8)[::3])


def test_what_is_no_video_is_one_sentence(tmp_path, make_config):
    with pytest.raises(UserError, match="'no such folder', but there is no video"):
        inputs.find_inputs("no such folder")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (video,) = inputs.find_inputs(str(tmp_path / "a.mp4"))
    with pytest.raises(UserError, match="a.mp4 cannot be used"):
        inputs.read_input(video, make_config())


def test_masks_come_from_arrays_and_from_images(tmp_path):
    mask = np.zeros((16, 16, 16), bool)
    mask[5, 0, 3] = mask[8:, 4:12, 4:12] = True
    np.save(tmp_path / "mask.npy", mask)
    np.testing.assert_array_equal(inputs.read_mask(str(tmp_path / "mask.npy"), 16), mask)
    Image.fromarray(np.where(mask[9], 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(inputs.read_mask(str(tmp_path / "mask.png"), 16), mask[9])
    (tmp_path / "a.mp4").write_bytes(b"no image")
    for name in ("a.mp4", "none.npy"):
        with pytest.raises(UserError, match="mask"):
            inputs.read_mask(str(tmp_path / name), 16)
