"""The data sets of the paper: their builders, layouts, split rules, published sizes, and what to do
when they are not here.
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
    """What is known of a set beyond its files."""

    builder: type[VideoRecords]
    read: Callable[[Path], list[Video]]
    missing: (
        str  # what to fetch and where to put it; a clause that follows a statement of what is wrong
    )
    # The split that real clips for FVD come from in MeBT's scripts: train for UCF-101
    # (valid_*_ucf_*.sh pass --train), else test.txt. TATS takes train for all.
    real_split: str
    archives: tuple[Archive, ...] = ()  # that can be fetched
    published: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # videos in each split, where the set says so
    classes: Callable[[Path], list[str]] = (
        lambda path: []
    )  # in the order of their numbers; [] is that of the alphabet


OFFICIAL = {
    "ucf101": OfficialSet(
        Ucf101Records, layouts.ucf101,
        "download UCF101.rar (or UCF101_videos.zip) and UCF101TrainTestSplits-RecognitionTask.zip "
        "from "
        "https://www.crcv.ucf.edu/data/UCF101.php, put both into one folder DIR, packed or "
        "unpacked, and pass "
        "--config.data.source_dir=DIR",
        real_split="train", archives=mirrors.UCF101, published={"train": 9_537, "validation": 3_783},
        classes=layouts.ucf101_classes),
    "sky_timelapse": OfficialSet(
        SkyTimelapseRecords, layouts.sky_timelapse,
        "download the archive behind the link in https://github.com/weixiong-ur/mdgan, put it into "
        "a folder DIR, packed or "
        "unpacked (with sky_train and sky_test; or put train.txt and test.txt with one frame path "
        "per line there), and "
        "pass --config.data.source_dir=DIR",
        real_split="validation"),
    "taichi_hd": OfficialSet(
        TaichiHdRecords, layouts.taichi_hd,
        "fetch its videos as "
        "https://github.com/AliaksandrSiarohin/first-order-model/blob/master/data/taichi-loading/README.md "
        "says, into a folder DIR with train and test below it (or with taichi-metadata.csv, or "
        "with train.txt and test.txt "
        "with one frame path per line), and pass --config.data.source_dir=DIR",
        real_split="validation"),
}  # fmt: skip
