"""The tensorflow-datasets builders: what a record holds, how a video is cut into records, and the
files that they end up in.

A record is a run of consecutive frames of one video as image files, so that the pipeline decodes no
more than the window that it uses. Record files are written in parallel by data/preparation.py; a
builder takes them over under the names and with the metadata by which tensorflow-datasets finds
them. No feature here needs TensorFlow to be written or read.
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

LAYOUT = (
    2  # of the records; goes up when their features change, so that older ones are prepared anew
)


@dataclasses.dataclass(frozen=True)
class RecordSettings:
    """All that decides what the records of a given list of videos hold."""

    source: str
    path: str
    resolution: int
    jpeg_quality: int
    record_frames: int
    # consecutive frames that a clip reaches over; every such window lies whole in one record
    span: int
    validation_fraction: float
    seed: int
    layout: int = LAYOUT


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A finished file of records."""

    path: Path
    records: int


def record_features(classes: Sequence[str]) -> tfds.features.FeaturesDict:
    """Of one record; `classes` are the names that videos are labelled with, if any."""
    return tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Sequence(tfds.features.Text()),  # image files
            "video": tfds.features.Text(),
            "start": np.int64,  # first frame of the record, counted in the video
            "frames_per_second": np.float32,  # 0 where unknown
            "label": tfds.features.ClassLabel(names=list(classes))
            if classes
            else np.int64,  # -1 where there is none
        }
    )


# One record at a time can be read; images do not shrink, and unpacking them anew for each clip
# takes longer than decoding one.
WRITER_OPTIONS = "group_size:1,uncompressed"


class Records(tfds.core.dataset_builder.FileReaderBuilder):
    """Finished files of records, as the splits of a data set."""

    VERSION = tfds.core.Version(f"{LAYOUT}.0.0")
    # Where tfds would look for checksums of downloads, by way of a package that it does not
    # install; there are none.
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
        """Names the finished files as shards of their splits; they stay where they are too, until
        all is done.
        """
        del dl_manager, download_config
        splits = []
        for name, files in self._files.items():
            template = self._get_filename_template(split_name=name)
            for i, file in enumerate(files):
                place(
                    file.path, Path(template.sharded_filepath(shard_index=i, num_shards=len(files)))
                )
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
    """The records of any folder of videos; the published sets derive from it (data/official.py)."""

    description = "Videos of a folder, cut into runs of frames."


def place(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def video_records(
    video: Video, settings: RecordSettings, label: int, folder: Path
) -> tuple[int, Iterator[dict]]:
    """(number of frames, records in order) of one video, decoded once and holding one record in
    memory.

    The image files of the whole video wait in a temporary file in `folder`, since only at its end
    it is known that the video is whole and how many records it makes: a video is used whole or not
    at all.

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
    in exactly one.

    Records overlap by span - 1 frames and have equal numbers of windows, so that no window is drawn
    more often than another of its video. Where `record_frames` is below 2 * span they get longer
    than it, or most of each would be overlap.
    """
    windows = num_frames - span + 1
    per_record = max(record_frames - span + 1, span)
    records = math.ceil(windows / per_record)
    edges = [windows * k // records for k in range(records + 1)]
    return [(edges[k], edges[k + 1] + span - 1) for k in range(records)]


def cut_records(
    frames: Iterator[bytes], bounds: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, list[bytes]]]:
    """(first frame, frames) of each record, holding one record in memory."""
    held, first = [], 0
    for start, end in bounds:
        del held[: start - first]
        first = start
        held += itertools.islice(frames, end - start - len(held))
        yield start, list(held)


def open_records(folder: Path, split: str) -> Sequence[dict]:
    """Random-access source of the records of one split below `folder`."""
    (info,) = folder.glob("*/*/dataset_info.json")
    return tfds.builder_from_directory(str(info.parent)).as_data_source(split)
