"""Videos on disk: finding them in a folder and decoding them frame by frame.

A video is a file that PyAV can decode, or a run of image files. One frame at a time is in memory.
"""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mebt_jax.data import clips
from mebt_jax.errors import UserError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".avi", ".mov", ".webm", ".gif", ".m4v", ".mpg", ".mpeg"}
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


class BrokenVideo(Exception):
    """This video cannot be used; the message is the reason in the manifest."""


@dataclasses.dataclass(frozen=True)
class Video:
    """One video of a data set: a single video file, or the image files of its frames in order."""

    name: str  # path relative to the data folder; unique in the data set
    files: tuple[Path, ...]
    split: str = ""  # "train" or "validation" if the data set says so, else ""
    label: str = ""  # name of its class, if it has one

    @property
    def is_frames(self) -> bool:
        return self.files[0].suffix.lower() in IMAGE_SUFFIXES


def natural_key(text: str) -> list:
    """Sorting key that puts frame2 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def find_videos(folder: Path) -> list[Video]:
    """All videos below a folder, in natural order. Every video file is one, and every folder with
    images.
    """
    videos = []
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(
            (name for name in subfolders if not name.startswith(".")), key=natural_key
        )
        here = Path(directory)
        names = sorted((name for name in names if not name.startswith(".")), key=natural_key)
        images = tuple(here / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        if images:
            videos.append(Video(here.relative_to(folder).as_posix(), images))
        videos += [
            Video((here / name).relative_to(folder).as_posix(), (here / name,))
            for name in names
            if Path(name).suffix.lower() in VIDEO_SUFFIXES
        ]
    return sorted(videos, key=lambda video: natural_key(video.name))


def read_frame_list(path: Path, split: str) -> list[Video]:
    """Videos of an official frame list: one image path per line, named <video>_<number>.<suffix>.

    Relative paths start at the folder of the list. A gap in the numbers starts another video.

    Note: mebt/data.py:433 (FrameListDataset) sorts the lines as text, so that numbers without
    leading zeros fall apart into many videos; here they are sorted as numbers.

    Raises:
        UserError: a line is no such path.
    """
    frames = []
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        match = re.fullmatch(r"(.*)_(\d+)(\.\w+)", line)
        if not match or match[3].lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{path} is not a list of frames: the line {line!r} does not end in _<number>.jpg "
                "or .png."
            )
        frames.append((match[1], int(match[2]), path.parent / line))
    return [
        Video(f"{stem}_{number}", files, split) for (stem, number), files in runs_of_frames(frames)
    ]


def split_at_gaps(video: Video) -> list[Video]:
    """The videos of a folder of numbered frames by the rule of the official lists: at a gap in the
    numbers another video starts.

    A folder without a gap, or with files that end in no number, is returned as one video.
    """
    matches = [re.fullmatch(r"(.*?)(\d+)", file.stem) for file in video.files]
    if not all(matches):
        return [video]
    runs = runs_of_frames(
        [(match[1], int(match[2]), file) for match, file in zip(matches, video.files, strict=True)]
    )
    if len(runs) == 1:
        return [dataclasses.replace(video, files=runs[0][1])]
    return [
        dataclasses.replace(video, name=f"{video.name}/{stem}{number}", files=files)
        for (stem, number), files in runs
    ]


def runs_of_frames(
    frames: list[tuple[str, int, Path]],
) -> list[tuple[tuple[str, int], tuple[Path, ...]]]:
    """((stem, first number), files in order) of each run of frames (stem, number, file) whose
    numbers have no gap.
    """
    frames = sorted(frames, key=lambda frame: frame[:2])
    runs: list[tuple[tuple[str, int], list[Path]]] = []
    for i, (stem, number, file) in enumerate(frames):
        if i == 0 or frames[i - 1][:2] != (stem, number - 1):
            runs.append(((stem, number), []))
        runs[-1][1].append(file)
    return [(start, tuple(files)) for start, files in runs]


def count_frames(video: Video) -> int:
    """Number of frames; decodes the whole video, so every counted frame can be read.

    Raises:
        BrokenVideo: it cannot be decoded to its end.
    """
    return sum(1 for _ in (_images(video) if video.is_frames else _decoded(video.files[0])))


def read_frames(video: Video, resolution: int) -> Iterator[np.ndarray]:
    """Frames of a video in order, upright, centre square: uint8 [resolution, resolution, 3] each.

    Raises:
        BrokenVideo: it cannot be decoded to its end.
    """
    if video.is_frames:
        for image in _images(video):
            yield clips.square(image, resolution)
        return
    for frame, pixel_aspect in _decoded(video.files[0]):
        width, height = frame.width * pixel_aspect, frame.height
        # Shrinking within the colour conversion is several times faster than converting all pixels
        # and shrinking then.
        scale = min(1.0, resolution / min(width, height))
        width, height = round(width * scale), round(height * scale)
        image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        yield clips.square(image if matrix is None else upright(image, bytes(matrix)), resolution)


def read_clip(
    video: Video, resolution: int, frames: int, stride: int, start: int = 0
) -> np.ndarray:
    """The clip of a video that begins at frame `start`: uint8 [F, resolution, resolution, 3], with
    fewer than `frames` frames if the video ends before. Decodes nothing after it.

    Raises:
        BrokenVideo: it cannot be decoded that far.
    """
    window = clips.window(start, frames, stride)
    images = list(
        itertools.islice(read_frames(video, resolution), window.start, window.stop, window.step)
    )
    return np.stack(images) if images else np.zeros((0, resolution, resolution, 3), np.uint8)


def frame_size(video: Video) -> tuple[int, int]:
    """(height, width) in pixels of the first frame as it is stored.

    Raises:
        BrokenVideo: it cannot be decoded.
    """
    if video.is_frames:
        image = next(_images(video))
        return image.shape[0], image.shape[1]
    for frame, _ in _decoded(video.files[0]):
        return frame.height, frame.width
    raise BrokenVideo("holds no frame")


def frames_per_second(video: Video) -> float:
    """Average rate of a video file; 0.0 if it is not known, as for image files and for files that
    cannot be opened.
    """
    if video.is_frames:
        return 0.0
    try:
        with av.open(str(video.files[0])) as container:
            return (
                float(container.streams.video[0].average_rate or 0)
                if container.streams.video
                else 0.0
            )
    except av.FFmpegError:
        return 0.0


def upright(image: np.ndarray, display_matrix: bytes) -> np.ndarray:
    """[h, w, 3] turned and mirrored as the display matrix of its video says.

    Phones store frames as the sensor records them, with a matrix [[a, b], [c, d]] in 16.16 fixed
    point that maps (x, y) to (a x + c y, b x + d y) on the screen (ISO/IEC 14496-12). Angles other
    than multiples of 90 degrees are ignored.
    """
    a, b, _, c, d = np.rint(np.frombuffer(display_matrix, np.int32)[:5] / 2**16).astype(int)
    if a == 0 and d == 0:
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _images(video: Video) -> Iterator[np.ndarray]:
    size = None
    for file in video.files:
        try:
            image = clips.decode_image(file.read_bytes())
        except OSError as error:
            raise BrokenVideo(f"{file.name}: {error.strerror}") from error
        if image is None:
            raise BrokenVideo(f"{file.name} is not a readable image")
        if size not in (None, image.shape):
            raise BrokenVideo(f"{file.name} has another size than the frames before it")
        size = image.shape
        yield image


def _decoded(path: Path) -> Iterator[tuple[av.VideoFrame, float]]:
    """(frame, width over height of its pixels) of the first video stream."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BrokenVideo("holds no readable video; the file may have been cut short")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            pixel_aspect = float(stream.sample_aspect_ratio or Fraction(1)) or 1.0
            packets = 0
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packet.is_corrupt:
                    raise BrokenVideo("the file ends early or is damaged")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise BrokenVideo(f"the frame at {frame.time or math.nan:.2f} s is damaged")
                    yield frame, pixel_aspect
            # A file that was cut short may still have a complete index at its front.
            expected = len(stream.index_entries)
            if packets < expected:
                raise BrokenVideo(f"the file ends early: {packets} of {expected} frames are there")
    except av.FFmpegError as error:
        raise BrokenVideo(f"cannot be decoded ({error.strerror})") from error
