"""What a user gives the sampler in files: the videos that a task starts from, and the mask of the
task fill.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from mebt_jax.config import Config
from mebt_jax.data import clips, video_files
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError


def find_inputs(path: str) -> list[Video]:
    """The videos at a path: one file, one folder of frames, or all videos below a folder.

    The name of each is the path by which a user opens it: `path` as it was given, and the rest.

    Raises:
        UserError: there are none.
    """
    folder = Path(path)
    if folder.is_file():
        return [Video(path, (folder,))]
    videos = [
        dataclasses.replace(video, name=os.path.join(path, video.name))
        for video in video_files.find_videos(folder)
    ]
    if not videos:
        raise UserError(
            f"config.sample.input is {path!r}, but there is no video; give a video file or a "
            "folder of videos."
        )
    return videos


def read_input(video: Video, config: Config) -> np.ndarray:
    """The first clip of a video, uint8 [F, H, W, 3] with every `data.frame_stride`-th frame, or
    fewer frames if the video ends before.

    Raises:
        UserError: it cannot be decoded.
    """
    data = config.data
    try:
        clip = video_files.read_clip(video, data.resolution, data.frames, data.frame_stride)
    except BrokenVideo as error:
        raise UserError(f"The video {video.name} cannot be used: {error}.") from error
    if not len(clip):
        raise UserError(f"The video {video.name} cannot be used: it has no frames.")
    return clip


def read_mask(name: str, resolution: int) -> np.ndarray:
    """Bool [F, H, W] or [H, W] from a .npy file, or [H, W] from an image, True where it is white:
    where the task fill draws.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(name)
    if path.suffix.lower() == ".npy":
        try:
            return np.load(path, allow_pickle=False).astype(bool)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The mask {path} cannot be read ({error}); save it with numpy.save."
            ) from error
    image = clips.decode_image(path.read_bytes()) if path.is_file() else None
    if image is None:
        raise UserError(
            f"config.sample.mask is {name!r}, which is neither a .npy file nor an image; the task "
            "fill needs one that marks what to fill."
        )
    return clips.square(image, resolution)[..., 0] > 127
