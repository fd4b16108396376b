"""From videos to records: checks them, splits them, and writes ArrayRecord files through tensorflow-datasets.

Runs once per data set, in the data stage; data/sources.py opens what it leaves. A record is a run of consecutive frames of
one video as JPEG files, so that the pipeline decodes no more than the window that it uses.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from mebt_jax.data import clips, video_files
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class RecordSettings:
    """All that decides what the records of a given list of videos hold."""

    source: str
    path: str
    resolution: int
    jpeg_quality: int
    record_frames: int
    span: int  # consecutive frames that a clip reaches over; every such window lies whole in one record
    validation_fraction: float
    seed: int


@dataclasses.dataclass(frozen=True)
class CheckedVideo:
    video: Video
    frames: int
    frames_per_second: float


class VideoRecords(tfds.core.GeneratorBasedBuilder):
    """The records of a list of checked videos. No feature here needs TensorFlow to be written or read."""

    VERSION = tfds.core.Version("1.0.0")
    # Where tfds would look for checksums of downloads, by way of a package that it does not install; there are none.
    code_path = None

    def __init__(self, data_dir: str, splits: dict[str, list[CheckedVideo]], settings: RecordSettings):
        self._splits = splits
        self._settings = settings
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({
            "frames": tfds.features.Sequence(tfds.features.Text()),  # JPEG files
            "video": tfds.features.Text(),
            "start": np.int64,  # first frame of the record, counted in the video
            "frames_per_second": np.float32,  # 0 where unknown
        })
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        settings = self._settings
        for checked in tqdm(self._splits[split], desc=f"writing {split} records", unit="video"):
            images = video_files.read_frames(checked.video, settings.resolution)
            jpegs = (clips.encode_jpeg(image, settings.jpeg_quality) for image in images)
            bounds = record_bounds(checked.frames, settings.span, settings.record_frames)
            for start, frames in cut_records(jpegs, bounds):
                yield f"{checked.video.name}@{start}", {
                    "frames": frames,
                    "video": checked.video.name,
                    "start": start,
                    "frames_per_second": checked.frames_per_second,
                }


def record_bounds(num_frames: int, span: int, record_frames: int) -> list[tuple[int, int]]:
    """(first frame, end) of the records of one video, such that each window of `span` frames starts in exactly one.

    Records overlap by span - 1 frames and have equal numbers of windows, so that no window is drawn more often than another
    of its video. Where `record_frames` is below 2 * span they get longer than it, or most of each would be overlap.
    """
    windows = num_frames - span + 1
    per_record = max(record_frames - span + 1, span)
    records = math.ceil(windows / per_record)
    edges = [windows * k // records for k in range(records + 1)]
    return [(edges[k], edges[k + 1] + span - 1) for k in range(records)]


def cut_records(frames: Iterator[bytes], bounds: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[bytes]]]:
    """(first frame, frames) of each record, holding one record in memory."""
    held, first = [], 0
    for start, end in bounds:
        del held[: start - first]
        first = start
        held += itertools.islice(frames, end - start - len(held))
        yield start, list(held)


def check_videos(videos: Sequence[Video], span: int) -> tuple[list[CheckedVideo], list[dict[str, str]]]:
    """(videos that can be used, [{"video", "reason"}] of those that cannot), by decoding each of them once to its end."""

    def check(video: Video) -> CheckedVideo | dict[str, str]:
        try:
            frames = video_files.count_frames(video)
            if frames < span:
                raise BrokenVideo(f"has {frames} frames, but a clip reaches over {span}")
            return CheckedVideo(video, frames, video_files.frames_per_second(video))
        except BrokenVideo as error:
            return {"video": video.name, "reason": str(error)}

    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        results = list(tqdm(threads.map(check, videos), total=len(videos), desc="checking videos", unit="video"))
    finally:
        threads.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all that are queued
    usable = [result for result in results if isinstance(result, CheckedVideo)]
    return usable, [result for result in results if not isinstance(result, CheckedVideo)]


def split_videos(videos: Sequence[CheckedVideo], fraction: float, seed: int) -> tuple[dict[str, list[CheckedVideo]], str]:
    """({"train": [...], "validation": [...]}, how it was split); a video is never in both.

    The data set's own split is kept if it has videos on both sides (those it does not place go to training); else about
    `fraction` of the videos, at least one, are held out in an order that follows from the seed and their names. A single
    video can only train.
    """
    splits = {
        "train": [v for v in videos if v.video.split != "validation"],
        "validation": [v for v in videos if v.video.split == "validation"],
    }
    if all(splits.values()):
        return splits, "as the data set gives it"
    if len(videos) == 1:
        return {"train": list(videos)}, "none: the one video is used for training and for validation"
    order = sorted(videos, key=lambda v: hashlib.sha256(f"{seed}/{v.video.name}".encode()).digest())
    held_out = min(max(1, round(fraction * len(videos))), len(videos) - 1)
    return {"train": order[held_out:], "validation": order[:held_out]}, f"by video, {held_out} of {len(videos)} held out"


def listing_hash(videos: Sequence[Video]) -> str:
    """12 hex digits that change when a file is added, removed or rewritten."""
    digest = hashlib.sha256()
    for video in videos:
        digest.update(f"{video.name}\0{video.split}\0".encode())
        for file in video.files:
            stat = file.stat() if file.exists() else None
            digest.update(f"{file.name}\0{(stat.st_size, stat.st_mtime_ns) if stat else None}\0".encode())
    return digest.hexdigest()[:12]


def write_records(folder: Path, videos: Sequence[Video], settings: RecordSettings) -> dict:
    """Writes the records of `videos` and their manifest to `folder` and returns the manifest.

    Everything goes to a folder beside it that takes the final name when it is whole, so a folder of that name is never half
    written. An older one of that name is replaced.

    Raises:
        UserError: no video can be used, or the disk is full.
    """
    usable, skipped = check_videos(videos, settings.span)
    if not usable:
        reasons = "; ".join(f"{entry['video']}: {entry['reason']}" for entry in skipped[:3]) + "; ..." * (len(skipped) > 3)
        raise UserError(f"None of the {len(videos)} videos in {settings.path} can be used ({reasons}); give others, or ask "
                        f"for shorter clips with --config.data.frames and --config.data.frame_stride.")
    splits, how = split_videos(usable, settings.validation_fraction, settings.seed)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        builder = VideoRecords(str(unfinished), splits, settings)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads, and there are none
            builder.download_and_prepare()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"No space left in {folder.parent} while writing the records; free some, or name another place "
                            f"with --config.data.prepared_dir.") from error
        raise
    manifest = {
        "settings": dataclasses.asdict(settings),
        "listing": listing_hash(videos),
        "split": how,
        "records": {name: builder.info.splits[name].num_examples for name in splits},
        "videos": {name: len(part) for name, part in splits.items()},
        "frames": {name: sum(v.frames for v in part) for name, part in splits.items()},
        "hours": {name: round(sum(v.frames / v.frames_per_second for v in part if v.frames_per_second) / 3600, 4)
                  for name, part in splits.items()},
        "used": {name: {v.video.name: v.frames for v in part} for name, part in splits.items()},
        "skipped": skipped,
    }
    (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return manifest


def open_records(folder: Path, split: str) -> Sequence[dict]:
    """Random-access source of the records of one split."""
    name = tfds.core.naming.camelcase_to_snakecase(VideoRecords.__name__)
    return tfds.builder_from_directory(str(folder / name / str(VideoRecords.VERSION))).as_data_source(split)
