"""The tasks as masks: which pixels of a clip are given and which are drawn, and which tokens follow
from given pixels alone.

Every task is the same decoding with another set of known tokens. A pixel that is not given
influences no known token: the tokenizer sees the nearest given pixel in its place.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from mebt_jax.config import Config
from mebt_jax.data import inputs
from mebt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """The pixels of a clip that a task draws, and the tokens that it knows."""

    name: str
    drawn: np.ndarray  # bool [F, H, W], True where pixels are drawn anew
    known: np.ndarray  # bool [T, H, W] of the latent grid, True where all pixels are given
    # True: the tokenizer sees the old content of the drawn pixels (an edit, whose given tokens
    # have seen it too).
    shows_drawn: bool = False

    @property
    def num_known(self) -> int:
        return int(self.known.sum())

    def visible(self, video: np.ndarray) -> np.ndarray:
        """A clip uint8 [F, H, W, 3] as the tokenizer may see it. `video` may be shorter than a clip
        if all frames that are given are in it.

        Raises:
            UserError: a given frame is missing, or the frames have another size.
        """
        frames, height, width = self.drawn.shape
        if video.dtype != np.uint8 or video.shape[1:] != (height, width, 3) or not len(video):
            raise UserError(
                f"A video is {video.dtype} {video.shape}, but clips are uint8 "
                f"{(frames, height, width, 3)}; resize it, or give the path of its file."
            )
        video = video[:frames]
        if self.shows_drawn and len(video) < frames or not self.drawn[len(video) :].all():
            raise UserError(
                f"A video has {len(video)} frames, but the task {self.name} is given later frames "
                f"of {frames}; use a longer one."
            )
        video = np.pad(video, ((0, frames - len(video)), (0, 0), (0, 0), (0, 0)), mode="edge")
        if self.shows_drawn or self.drawn.all():
            return video
        return replace_by_nearest(video, self.drawn)


def generate(config: Config) -> Task:
    """Draws everything."""
    return _task("generate", config, np.ones(_size(config), bool))


def predict(config: Config, frames: int) -> Task:
    """Draws all frames after the first `frames`."""
    _check_frames(
        config, frames, "given_frames", most=config.data.frames - config.tokenizer.compression[0]
    )
    return _after("predict", config, frames)


def interpolate(config: Config, first: int, last: int) -> Task:
    """Draws the frames between the first `first` and the last `last`."""
    most = config.data.frames - config.tokenizer.compression[0]
    _check_frames(config, first, "given_frames", most)
    _check_frames(config, last, "given_last_frames", most, at_start=False)
    drawn = np.zeros(_size(config), bool)
    drawn[first : config.data.frames - last] = True
    if not drawn.any():
        raise UserError(
            f"config.sample.given_frames {first} and given_last_frames {last} leave nothing to "
            f"draw of a clip of {config.data.frames} frames; give fewer."
        )
    return _task("interpolate", config, drawn)


def fill(config: Config, drawn: np.ndarray) -> Task:
    """Draws the pixels that `drawn` marks, bool [F, H, W], or [H, W] for the same in every frame.
    Their old content is not used.
    """
    frames, height, width = _size(config)
    if drawn.shape not in ((frames, height, width), (height, width)):
        raise UserError(
            f"The mask has shape {drawn.shape}, but clips have {frames} frames of "
            f"{height}x{width}; give a mask [{frames}, {height}, {width}] or [{height}, {width}]."
        )
    return _task("fill", config, np.broadcast_to(drawn.astype(bool), (frames, height, width)))


def edit(config: Config, region: tuple[int, int, int, int, int, int]) -> Task:
    """Draws a box of a given clip anew, half-open in frames and pixels: (first frame, end, top,
    bottom, left, right).
    """
    size = _size(config)
    starts, ends = region[::2], region[1::2]
    if not all(0 <= start < end <= most for start, end, most in zip(starts, ends, size)):
        raise UserError(
            f"config.sample.region is {tuple(region)}, but must be (first frame, end, top, bottom, "
            f"left, right) within {size[0]} frames of {size[1]}x{size[2]}, each end above its "
            "start."
        )
    drawn = np.zeros(size, bool)
    drawn[tuple(slice(start, end) for start, end in zip(starts, ends))] = True
    return dataclasses.replace(_task("edit", config, drawn), shows_drawn=True)


def first_window(config: Config, frames: int) -> Task:
    """The first window of `extend` on a given video: draws all frames after its first `frames`,
    which may be the whole window.
    """
    _check_frames(config, frames, "given_frames", most=config.data.frames)
    return _after("extend", config, frames)


def continuation(config: Config, overlap: int) -> Task:
    """A later window of `extend`: draws all but its first `overlap` frames, which are the last of
    the window before.
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
        return fill(config, inputs.read_mask(sample.mask, config.data.resolution))
    if sample.task == "edit":
        return edit(config, sample.region)
    if sample.task == "extend" and sample.input:
        return first_window(config, sample.given_frames)
    return generate(config)


def replace_by_nearest(video: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] in which the nearest pixel that is not marked replaces each pixel that
    `hidden`, bool [F, H, W], marks.
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


def _task(name: str, config: Config, drawn: np.ndarray) -> Task:
    (frames, height, width), (t, h, w) = config.grid, config.tokenizer.compression
    # A causal tokenizer's first token stands for one frame. Repeated at the start, that frame
    # fills a cell of the same size as the others.
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
            f"clip has {config.data.frames} frames."
        )
    if (frames - extra) % step:
        near = max(extra or step, round((frames - extra) / step) * step + extra)
        after = " and the first for one" if extra else ""
        raise UserError(
            f"config.sample.{field} is {frames}, but a token stands for {step} frames{after}; use "
            f"{'one more than ' if extra else ''}a multiple, such as {near}."
        )
