"""The tensorflow-datasets builders: the content of a record, how a video is cut into records, and
how files of records become a data set.

A record is a run of consecutive frames of one video as image files, so that the pipeline decodes no
more than the window that it uses. data/preparation.py writes the files in parallel; a builder gives
them the names and the metadata by which tensorflow-datasets finds them. No feature here needs
TensorFlow to be written or read.
"""

import dataclasses
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mebt_jax.data import clips, video_files
from mebt_jax.data.video_files import BrokenVideo, Video

# Version of the features of a record; with another one, records are prepared anew.
LAYOUT = 2


@dataclasses.dataclass(frozen=True)
class RecordSettings:
    """Everything that the records of a given list of videos follow from."""

    source: str
    path: str
    resolution: int
    jpeg_quality: int
    record_frames: int
    span: int  # consecutive frames of a clip; every window of them lies whole in one record
    validation_fraction: float
    seed: int
    layout: int = LAYOUT


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A finished file of records."""

    path: Path
    records: int


def record_features(classes: Sequence[str]) -> tfds.features.FeaturesDict:
    """Features of one record; `classes` are the names of the labels, if videos have any."""
    label = tfds.features.ClassLabel(names=list(classes)) if classes else np.int64
    return tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Sequence(tfds.features.Text()),  # image files
            "video": tfds.features.Text(),
            "start": np.int64,  # first frame of the record, counted in the video
            "frames_per_second": np.float32,  # 0 where unknown
            "label": label,  # index of the class, or conditions.NO_LABEL
        }
    )


# Groups of one, so that a single record can be read. Not compressed: images do not shrink, and
# decompressing them for each clip takes longer than decoding one.
WRITER_OPTIONS = "group_size:1,uncompressed"


class Records(tfds.core.dataset_builder.FileReaderBuilder):
    """Finished files of records, as the splits of a data set."""

    VERSION = tfds.core.Version(f"{LAYOUT}.0.0")
    # From a code path tfds would look for checksums of downloads, with a package that it does not
    # install. There are no downloads.
    code_path = None
    description = homepage = ""

    def __init__(
        self,
        data_dir: str,
        features: tfds.features.FeaturesDict,
        files: dict[str, list[RecordFile]],
    ):
        self._features = features
        self._files = files
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=self._features,
            description=self.description,
            homepage=self.homepage or None,
        )

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config=None
    ) -> None:
        """Gives the finished files a second name, as shards of their splits. The first name stays
        until everything is done, so that an interrupted preparation can go on.
        """
        del dl_manager, download_config
        splits = []
        for name, files in self._files.items():
            template = self._get_filename_template(split_name=name)
            for i, file in enumerate(files):
                shard = template.sharded_filepath(shard_index=i, num_shards=len(files))
                link(file.path, Path(shard))
            splits.append(
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=[file.records for file in files],
                    num_bytes=sum(file.path.stat().st_size for file in files),
                    filename_template=template,
                )
            )
        self.info.set_splits(tfds.core.splits.SplitDict(splits))


class VideoRecords(Records):
    """The records of any folder of videos; data/published_sets.py derives from it."""

    description = "Videos of a folder, cut into runs of frames."


def link(source: Path, target: Path) -> None:
    """Gives a file a second name; makes a copy where the disk cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def video_records(
    video: Video, settings: RecordSettings, label: int, folder: Path
) -> tuple[int, Iterator[dict]]:
    """(number of frames, records in order) of one video; decodes it once, and holds one record in
    memory.

    A video is used whole or not at all, and how many records it makes follows from its length. So
    its image files wait in a temporary file in `folder` until its end is decoded.

    Raises:
        BrokenVideo: it cannot be decoded to its end, or is shorter than a clip.
    """
    spool = tempfile.TemporaryFile(dir=folder)
    sizes = []
    for image in video_files.read_frames(video, settings.resolution):
        content = clips.encode_image(image, settings.jpeg_quality)
        spool.write(content)
        sizes.append(len(content))
    if len(sizes) < settings.span:
        raise BrokenVideo(too_short(len(sizes), settings.span))
    rate = video_files.frames_per_second(video)

    def records() -> Iterator[dict]:
        with spool:
            spool.seek(0)
            images = (spool.read(size) for size in sizes)
            for start, frames in cut_records(
                images, record_bounds(len(sizes), settings.span, settings.record_frames)
            ):
                yield {
                    "frames": frames,
                    "video": video.name,
                    "start": start,
                    "frames_per_second": rate,
                    "label": label,
                }

    return len(sizes), records()


def too_short(frames: int, span: int) -> str:
    return f"has {frames} frames, but a clip reaches over {span}"


def record_bounds(num_frames: int, span: int, record_frames: int) -> list[tuple[int, int]]:
    """(first frame, end) of the records of one video, such that each window of `span` frames starts
    in exactly one record.

    Records overlap by span - 1 frames and have equal numbers of windows, so that all windows of a
    video are drawn equally often. If `record_frames` is below 2 * span, records are longer than
    `record_frames`, since otherwise most of each would be overlap.
    """
    windows = num_frames - span + 1
    per_record = max(record_frames - span + 1, span)
    records = math.ceil(windows / per_record)
    edges = [windows * k // records for k in range(records + 1)]
    return [(edges[k], edges[k + 1] + span - 1) for k in range(records)]


def cut_records(
    frames: Iterator[bytes], bounds: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, list[bytes]]]:
    """(first frame, frames) of each record; holds one record in memory."""
    record, first = [], 0
    for start, end in bounds:
        del record[: start - first]
        first = start
        record += itertools.islice(frames, end - start - len(record))
        yield start, list(record)


def open_records(folder: Path, split: str) -> Sequence[dict]:
    """Random-access source of the records of one split below `folder`."""
    (info,) = folder.glob("*/*/dataset_info.json")
    return tfds.builder_from_directory(str(info.parent)).as_data_source(split)
