"""The clips of two folders of videos, and what is measured of them; checks that the folders can be
compared.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from mebt_jax.config import Config
from mebt_jax.data import clips, measured_clips, preparation, video_files
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError
from mebt_jax.metrics import measures as measures_lib
from mebt_jax.metrics.measures import Measure, Values
from mebt_jax.runtime import telemetry

RATE_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class ClipRule:
    """How a clip is cut from each video."""

    frames: int
    stride: int
    size: tuple[int, int]  # (height, width) that every video must have; (0, 0): any
    side: int  # pixels of the square that its frames are brought to
    start: str  # "first" or "random", which follows from the name of the video


@dataclasses.dataclass(frozen=True)
class Side:
    """The clips of one folder."""

    rule: ClipRule
    videos: list[Video]  # those used, in the order of the rows
    values: Values  # by measure: [n, ...]
    skipped: list[dict[str, str]]  # {"video", "reason"}

    @property
    def stored_as(self) -> str:
        """Suffixes of the files: what one side lost to compression and the other did not counts as
        a difference.
        """
        suffixes = {video.files[0].suffix.lower().lstrip(".") for video in self.videos}
        return ", ".join(sorted(suffixes))

    def read(self, index: int) -> np.ndarray:
        """The clip of a row, uint8 [F, side, side, 3]."""
        return read_clip(self.videos[index], self.rule)


# ---- folders -------------------------------------------------------------------------------------


def find(folder: str, name: str) -> list[Video]:
    """The videos of a folder, in an order that follows from their names and mixes its subfolders.

    Args:
        name: the field of `config.evaluate` that names the folder.

    Raises:
        UserError: there is no such folder, or it holds no videos.
    """
    if not folder or not Path(folder).is_dir():
        problem = f"{folder!r} is not a folder" if folder else "is empty"
        raise UserError(
            f"config.evaluate.{name} {problem}; to compare folders give both "
            "--config.evaluate.real=DIR and --config.evaluate.fake=DIR."
        )
    videos = video_files.find_videos(Path(folder))
    if not videos:
        raise UserError(
            f"{folder} holds no videos, directly or in subfolders; config.evaluate.{name} must be "
            "a folder of video files or of folders of frames."
        )
    return sorted(videos, key=lambda video: measured_clips.order_key(video.name))


def common_size(
    real: list[Video], fake: list[Video], config: Config
) -> tuple[tuple[int, int], int]:
    """((height, width) that every video must have, side of the squares to compare)."""
    if config.evaluate.resolution:
        return (0, 0), config.evaluate.resolution
    sizes = {}
    for name, videos in (("real", real), ("generated", fake)):
        try:
            sizes[name] = video_files.frame_size(videos[0])
        except BrokenVideo as error:
            raise UserError(f"The {name} video {videos[0].name} {error}; remove it.") from error
    (height, width), other = sizes["real"], sizes["generated"]
    if (height, width) != other:
        raise UserError(
            f"Real clips are {height}x{width} and generated ones {other[0]}x{other[1]}, and a "
            "resize would count as a difference; give clips of one size, or bring both to one with "
            f"--config.evaluate.resolution={min(height, width, *other)}."
        )
    return (height, width), min(height, width)


def check_frame_rates(real: list[Video], fake: list[Video]) -> None:
    """Raises UserError if the files of both sides name a frame rate and the rates differ."""
    rates = []
    for videos in (real, fake):
        known = [rate for video in videos[:16] if (rate := video_files.frames_per_second(video))]
        rates.append(float(np.median(known)) if known else 0.0)
    if all(rates) and abs(rates[0] - rates[1]) > RATE_TOLERANCE * rates[0]:
        raise UserError(
            f"Real clips run at {rates[0]:g} frames per second and generated ones at {rates[1]:g}, "
            "so the same motion differs; give clips of one rate, or pass "
            "--config.evaluate.any_frame_rate=True if the files only say so."
        )


def check_enough(real: Side, fake: Side, config: Config) -> None:
    """Raises UserError if a side has too few clips for a distance."""
    for name, side in (("real", real), ("generated", fake)):
        if len(side.videos) < 2:
            reasons = "; ".join(
                f"{entry['video']}: {entry['reason']}" for entry in side.skipped[:3]
            )
            raise UserError(
                f"Only {len(side.videos)} of the {name} videos can be used and a distance needs 2 "
                f"({reasons}); give more, or ask for shorter clips with --config.data.frames (now "
                f"{config.data.frames})."
            )


# ---- clips ---------------------------------------------------------------------------------------


def read_clip(video: Video, rule: ClipRule) -> np.ndarray:
    """The clip of one video: uint8 [F, side, side, 3].

    Raises:
        BrokenVideo: it is damaged, too short, or of another size.
    """
    if rule.size != (0, 0) and (size := video_files.frame_size(video)) != rule.size:
        raise BrokenVideo(f"is {size[0]}x{size[1]}, the others {rule.size[0]}x{rule.size[1]}")
    start = 0
    if rule.start == "random":
        spare = video_files.count_frames(video) - clips.span(rule.frames, rule.stride)
        start = measured_clips.start_of(video.name, spare + 1) if spare > 0 else 0
    clip = video_files.read_clip(video, rule.side, rule.frames, rule.stride, start)
    if len(clip) < rule.frames:
        raise BrokenVideo(f"is too short for {rule.frames} frames at stride {rule.stride}")
    return clip


class ClipReader:
    """Reads one clip of each video, at most `limit` (0: all); keeps which videos it used, and the
    reasons why it skipped the others.
    """

    def __init__(self, videos: list[Video], rule: ClipRule, limit: int, text: str) -> None:
        self._videos, self._rule, self._limit, self._text = videos, rule, limit, text
        self.used: list[str] = []  # names
        self.skipped: list[dict[str, str]] = []

    def clips(self, at_once: int) -> Iterator[np.ndarray]:
        """Clips uint8 [F, side, side, 3], of which `at_once` are decoded at the same time."""
        with (
            ThreadPoolExecutor() as threads,
            tqdm(
                total=len(self._videos),
                desc=f"evaluate: {self._text}",
                unit="clip",
                disable=jax.process_index() != 0,
                mininterval=2,
            ) as bar,
        ):
            for first in range(0, len(self._videos), at_once):
                videos = self._videos[first : first + at_once]
                for video, clip in zip(videos, threads.map(self._attempt, videos)):
                    bar.update()
                    if self._limit and len(self.used) == self._limit:
                        return
                    if isinstance(clip, BrokenVideo):
                        self.skipped.append({"video": video.name, "reason": str(clip)})
                        continue
                    self.used.append(video.name)
                    yield clip

    def _attempt(self, video: Video) -> np.ndarray | BrokenVideo:
        try:
            return read_clip(video, self._rule)
        except BrokenVideo as error:
            return error


def measure_side(
    videos: list[Video],
    rule: ClipRule,
    limit: int,
    measures: Mapping[str, Measure],
    *,
    size: int,
    mesh: Mesh,
    folder: Path,
    text: str,
) -> Side:
    """Measures at most `limit` clips (0: all), one per video; the videos that cannot be used are
    skipped and listed.

    Args:
        size: clips of a batch.
        folder: where values are stored for the next comparison.
        text: which clips these are, for messages.
    """

    def compute() -> Values:
        reader = ClipReader(videos, rule, limit, text)
        run = measures_lib.compiled(measures, mesh)
        values = measures_lib.measure_clips(run, reader.clips(size), size, mesh)
        return values | {
            "used": np.array(reader.used),
            "skipped": np.array(json.dumps(reader.skipped)),
        }

    keys = [
        preparation.listing_hash(videos),
        str(Path(videos[0].files[0]).parent),
        dataclasses.asdict(rule),
        limit,
        [measure.name for measure in measures.values()],
    ]
    values = measures_lib.cached(folder, keys, compute)
    skipped = json.loads(str(values.pop("skipped")))
    by_name = {video.name: video for video in videos}
    used = [by_name[name] for name in values.pop("used").tolist()]
    if skipped:
        telemetry.say(
            f"evaluate: {len(skipped)} of {len(videos)} {text} left out, first "
            f"{skipped[0]['video']}: {skipped[0]['reason']}; metrics.json lists them"
        )
    return Side(rule, used, values, skipped)
