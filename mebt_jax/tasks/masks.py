"""What is given of a clip, task by task: pixels first, then the tokens that see nothing but given
pixels.

Every task is the same decoding with another set of known tokens. Pixels that are not given reach no
known token: the tokenizer sees the nearest given pixels in their place.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
from scipy import ndimage

from mebt_jax.config import Config
from mebt_jax.data import clips, video_files
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """What to draw of each clip. `drawn` is bool [F, H, W], True where pixels are to be drawn
    anew.
    """

    name: str
    drawn: np.ndarray
    known: np.ndarray  # bool [T, H, W] of the latent grid
    # the tokenizer may see what is to be drawn anew: an edit's neighbours have seen the old content
    shows_drawn: bool = False

    @property
    def num_known(self) -> int:
        return int(self.known.sum())

    def visible(self, video: np.ndarray) -> np.ndarray:
        """A clip uint8 [F, H, W, 3] as the tokenizer may see it; one that is shorter must have all
        that is given.

        Raises:
            UserError: it does not, or has another size.
        """
        if (
            video.dtype != np.uint8
            or video.shape[1:] != (*self.drawn.shape[1:], 3)
            or not len(video)
        ):
            raise UserError(
                f"A video is {video.dtype} {video.shape}, but clips are uint8 "
                f"{(*self.drawn.shape, 3)}; resize "
                f"it, for instance with sampling.tasks.read_clip."
            )
        video = video[: len(self.drawn)]
        if self.shows_drawn and len(video) < len(self.drawn) or not self.drawn[len(video) :].all():
            raise UserError(
                f"A video has {len(video)} frames, but the task {self.name} is given later frames "
                "of "
                f"{len(self.drawn)}; use a longer one."
            )
        video = np.pad(
            video, ((0, len(self.drawn) - len(video)), (0, 0), (0, 0), (0, 0)), mode="edge"
        )
        return (
            video if self.shows_drawn or self.drawn.all() else replace_by_nearest(video, self.drawn)
        )


def generate(config: Config) -> Task:
    """Everything."""
    return _task("generate", config, np.ones(_size(config), bool))


def predict(config: Config, frames: int) -> Task:
    """All frames after the first `frames`."""
    _check_frames(
        config, frames, "given_frames", most=config.data.frames - config.tokenizer.compression[0]
    )
    return _after("predict", config, frames)


def interpolate(config: Config, first: int, last: int) -> Task:
    """The frames between the first `first` and the last `last`."""
    most = config.data.frames - config.tokenizer.compression[0]
    _check_frames(config, first, "given_frames", most)
    _check_frames(config, last, "given_last_frames", most, at_start=False)
    drawn = np.zeros(_size(config), bool)
    drawn[first : config.data.frames - last] = True
    if not drawn.any():
        raise UserError(
            f"config.sample.given_frames {first} and given_last_frames {last} leave nothing to "
            "draw of a clip of "
            f"{config.data.frames} frames; give fewer."
        )
    return _task("interpolate", config, drawn)


def fill(config: Config, drawn: np.ndarray) -> Task:
    """The marked pixels, bool [F, H, W], or [H, W] for the same in every frame; what they show is
    not used.
    """
    frames, height, width = _size(config)
    if drawn.shape not in ((frames, height, width), (height, width)):
        raise UserError(
            f"The mask has shape {drawn.shape}, but clips have {frames} frames of "
            f"{height}x{width}; give a mask "
            f"[{frames}, {height}, {width}] or [{height}, {width}]."
        )
    return _task("fill", config, np.broadcast_to(drawn.astype(bool), (frames, height, width)))


def edit(config: Config, region: tuple[int, int, int, int, int, int]) -> Task:
    """A box of a given clip, half-open in frames and pixels: (first frame, end, top, bottom, left,
    right).
    """
    size = _size(config)
    starts, ends = region[::2], region[1::2]
    if not all(0 <= start < end <= most for start, end, most in zip(starts, ends, size)):
        raise UserError(
            f"config.sample.region is {tuple(region)}, but must be (first frame, end, top, bottom, "
            "left, right) "
            f"within {size[0]} frames of {size[1]}x{size[2]}, each end above its start."
        )
    drawn = np.zeros(size, bool)
    drawn[tuple(slice(start, end) for start, end in zip(starts, ends))] = True
    return dataclasses.replace(_task("edit", config, drawn), shows_drawn=True)


def first_window(config: Config, frames: int) -> Task:
    """The first window of `extend` on a given video: all after its first `frames`, which may be the
    whole window.
    """
    _check_frames(config, frames, "given_frames", most=config.data.frames)
    return _after("extend", config, frames)


def continuation(config: Config, overlap: int) -> Task:
    """A window of `extend` after the first: all but its first `overlap` frames, which are the last
    of the window before.
    """
    _check_frames(
        config, overlap, "overlap_frames", most=config.data.frames - config.tokenizer.compression[0]
    )
    return _after("extend", config, overlap)


def from_config(config: Config) -> Task:
    """The task of `config.sample`; for `extend` that of its first window.

    Raises:
        UserError: its fields do not fit the clips.
    """
    sample = config.sample
    if sample.task not in ("generate", "extend") and not sample.input:
        raise UserError(
            f"The task {sample.task} needs a video; set config.sample.input to a video file or a "
            "folder of videos."
        )
    if sample.task == "predict":
        return predict(config, sample.given_frames)
    if sample.task == "interpolate":
        return interpolate(config, sample.given_frames, sample.given_last_frames)
    if sample.task == "fill":
        return fill(config, read_mask(sample.mask, config.data.resolution))
    if sample.task == "edit":
        return edit(config, sample.region)
    if sample.task == "extend" and sample.input:
        return first_window(config, sample.given_frames)
    return generate(config)


def replace_by_nearest(video: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] with each pixel marked in `hidden` [F, H, W] replaced by the nearest one
    that is not.
    """
    if not hidden.any():
        return video
    if (hidden == hidden[:, :1, :1]).all():  # whole frames
        (nearest,) = ndimage.distance_transform_edt(
            hidden[:, 0, 0], return_distances=False, return_indices=True
        )
        return video[nearest]
    nearest = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return video[tuple(nearest)]


def read_mask(name: str, resolution: int) -> np.ndarray:
    """Bool [F, H, W] or [H, W] from a .npy file, or [H, W] from an image that is white where to
    fill.

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
            "fill needs "
            f"one that marks what to fill."
        )
    return clips.square(image, resolution)[..., 0] > 127


def find_inputs(path: str) -> list[Video]:
    """The videos at a path: one file, one folder of frames, or all videos below a folder.

    Raises:
        UserError: there are none.
    """
    where = Path(
        path
    )  # a video is named in the manifest as one would open it: by the path as it was given
    if where.is_file():
        return [Video(path, (where,))]
    found = [
        dataclasses.replace(video, name=os.path.join(path, video.name))
        for video in video_files.find_videos(where)
    ]
    if not found:
        raise UserError(
            f"config.sample.input is {path!r}, but there is no video; give a video file or a "
            "folder of videos."
        )
    return found


def read_clip(video: Video, config: Config) -> np.ndarray:
    """The first clip of a video, every `data.frame_stride`-th frame, uint8 [F, H, W, 3], or fewer
    frames if it has no more.

    Raises:
        UserError: it cannot be decoded.
    """
    wanted, frames = clips.span(config.data.frames, config.data.frame_stride), []
    try:
        for number, frame in enumerate(video_files.read_frames(video, config.data.resolution)):
            if number % config.data.frame_stride == 0:
                frames.append(frame)
            if number + 1 == wanted:
                break
    except BrokenVideo as error:
        raise UserError(f"The video {video.name} cannot be used: {error}.") from error
    if not frames:
        raise UserError(f"The video {video.name} cannot be used: it has no frames.")
    return np.stack(frames)


def _task(name: str, config: Config, drawn: np.ndarray) -> Task:
    (frames, height, width), (t, h, w) = config.grid, config.tokenizer.compression
    # A causal tokenizer's first token stands for one frame: here as often as the others have
    # frames.
    padded = np.pad(drawn, ((frames * t - len(drawn), 0), (0, 0), (0, 0)), mode="edge")
    cells = padded.reshape(frames, t, height, h, width, w)
    return Task(name, drawn, known=~cells.any(axis=(1, 3, 5)))


def _size(config: Config) -> tuple[int, int, int]:
    return config.data.frames, config.data.resolution, config.data.resolution


def _after(name: str, config: Config, frames: int) -> Task:
    drawn = np.ones(_size(config), bool)
    drawn[:frames] = False
    return _task(name, config, drawn)


def _check_frames(
    config: Config, frames: int, field: str, most: int, *, at_start: bool = True
) -> None:
    step = config.tokenizer.compression[0]
    extra = 1 if at_start and config.tokenizer.causal else 0  # the frame of the first token
    if not 0 < frames <= most:
        raise UserError(
            f"config.sample.{field} is {frames}, but must be from {extra or step} to {most}, as a "
            "clip has "
            f"{config.data.frames} frames."
        )
    if (frames - extra) % step:
        near = max(extra or step, round((frames - extra) / step) * step + extra)
        after = " and the first for one" if extra else ""
        raise UserError(
            f"config.sample.{field} is {frames}, but a token stands for {step} frames{after}; use "
            f"{'one more than ' if extra else ''}a multiple, such as {near}."
        )
