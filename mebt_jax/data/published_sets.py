"""The data sets of the paper: their builders, layouts, split rules, published sizes, and
instructions for getting their files.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mebt_jax.data import layouts, mirrors
from mebt_jax.data.builder import VideoRecords
from mebt_jax.data.mirrors import Archive
from mebt_jax.data.video_files import Video


class Ucf101Records(VideoRecords):
    description = (
        "UCF-101, clips of people in 101 kinds of action, split 1, cut into runs of frames."
    )
    homepage = "https://www.crcv.ucf.edu/data/UCF101.php"


class SkyTimelapseRecords(VideoRecords):
    description = "Sky Time-lapse, runs of frames of the sky with moving clouds."
    homepage = "https://github.com/weixiong-ur/mdgan"


class TaichiHdRecords(VideoRecords):
    description = "Taichi-HD, people doing tai chi, cut around one person each, as runs of frames."
    homepage = "https://github.com/AliaksandrSiarohin/first-order-model"


@dataclasses.dataclass(frozen=True)
class OfficialSet:
    """Facts about a published set."""

    builder: type[VideoRecords]
    read: Callable[[Path], list[Video]]
    # Instructions when its files are not found; a clause that follows the problem.
    missing: str
    # The split that real clips for FVD come from in MeBT's scripts: train for UCF-101
    # (valid_*_ucf_*.sh pass --train), else test.txt. TATS takes train for all.
    real_split: str
    archives: tuple[Archive, ...] = ()  # that can be downloaded
    # Number of videos of each split, if the set publishes them.
    published: dict[str, int] = dataclasses.field(default_factory=dict)
    # Class names in the order of their labels; [] means the alphabetical order of those found.
    classes: Callable[[Path], list[str]] = lambda path: []


TAICHI_LOADER = (
    "https://github.com/AliaksandrSiarohin/first-order-model/blob/master/data/taichi-loading/"
    "README.md"
)
OFFICIAL = {
    "ucf101": OfficialSet(
        Ucf101Records,
        layouts.ucf101,
        "download UCF101.rar (or UCF101_videos.zip) and UCF101TrainTestSplits-RecognitionTask.zip "
        "from https://www.crcv.ucf.edu/data/UCF101.php, put both into one folder DIR, packed or "
        "unpacked, and pass --config.data.source_dir=DIR",
        real_split="train",
        archives=mirrors.UCF101,
        published={"train": 9_537, "validation": 3_783},
        classes=layouts.ucf101_classes,
    ),
    "sky_timelapse": OfficialSet(
        SkyTimelapseRecords,
        layouts.sky_timelapse,
        "download the archive behind the link in https://github.com/weixiong-ur/mdgan, put it into "
        "a folder DIR, packed or unpacked (with sky_train and sky_test; or put train.txt and "
        "test.txt with one frame path per line there), and pass --config.data.source_dir=DIR",
        real_split="validation",
    ),
    "taichi_hd": OfficialSet(
        TaichiHdRecords,
        layouts.taichi_hd,
        f"fetch its videos as {TAICHI_LOADER} says, into a folder DIR with train and test below it "
        "(or with taichi-metadata.csv, or with train.txt and test.txt with one frame path per "
        "line), and pass --config.data.source_dir=DIR",
        real_split="validation",
    ),
}
