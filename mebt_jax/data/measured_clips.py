"""The clips that numbers are measured on: one of each video of a split, once each, and where the real ones come from.

The evaluate stage uses this; training visits records instead (data/pipeline.py), of which a long video has several.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from mebt_jax.config import Config
from mebt_jax.data import builder, pipeline, preparation, sources

SPLITS = {"validation": "held-out", "train": "training"}  # what people call them


class ClipPerVideo:
    """One clip of each video of a split: `len`, and `[i]` -> {"video": uint8 [F, H, W, 3]}; decodes nothing else.

    The videos come in an order that follows from their names and mixes classes, so that the first n are no choice of classes;
    each clip starts at a place that follows from its video's name.
    """

    def __init__(self, records: Sequence[dict], places: np.ndarray, config: Config, text: str):
        self._records = records
        self._places = places  # [videos, 2]: record, first frame in it
        self._frames, self._stride = config.data.frames, config.data.frame_stride
        self.text = text  # what they are, for the string of a protocol

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record, start = self._places[index].tolist()
        return pipeline.cut(self._records[record], start, self._frames, self._stride)

    def batches(self, size: int, count: int, share: pipeline.Share = pipeline.WHOLE) -> Iterator[dict[str, np.ndarray]]:
        """This host's share of batches of `size` clips, the first `count` or as many as there are.

        The last batch is filled up with its last clip, so that none is left out; who measures leaves those rows away.
        """
        count = min(count, len(self))
        order = np.minimum(np.arange(-(-count // size) * size), count - 1)
        dataset = grain.MapDataset.source(order).map(lambda index: self[int(index)])
        return iter(pipeline.read(pipeline.shared(dataset, size, share), workers=0))


def open_clips(config: Config, workdir: Path, split: str) -> ClipPerVideo:
    """The clips of "train" or "validation".

    Raises:
        UserError: there are no records of these settings.
    """
    opened = sources.open_sources(config, workdir)
    records = opened.train if split == "train" else opened.validation
    if config.data.source == "moving_shapes":  # each record is a clip, drawn by itself
        return ClipPerVideo(records, np.stack([np.arange(len(records)), np.zeros(len(records), int)], axis=1), config,
                            SPLITS[split])
    manifest = preparation.read_manifest(sources.existing_records(config, workdir))
    videos = manifest["used"].get(split, manifest["used"]["train"])  # a single video serves for both
    settings = manifest["settings"]
    places, first = {}, 0
    for name, frames in videos.items():
        bounds = builder.record_bounds(frames, settings["span"], settings["record_frames"])
        start = start_of(name, frames - settings["span"] + 1)
        place = max(k for k, (begin, _) in enumerate(bounds) if begin <= start)
        places[name] = (first + place, start - bounds[place][0])
        first += len(bounds)
    quality = settings["jpeg_quality"]
    text = f"{SPLITS[split]}, one clip per video at a random start{f', JPEG {quality}' if quality else ''}"
    return ClipPerVideo(records, np.array([places[name] for name in sorted(videos, key=order_key)]), config, text)


def real_split(config: Config, workdir: Path) -> str:
    """The split that the papers on this set take for the real clips of their distances, as the manifest says; else held-out."""
    if config.data.source == "moving_shapes":
        return "validation"
    return preparation.read_manifest(sources.existing_records(config, workdir)).get("real_split", "validation")


def order_key(name: str) -> bytes:
    """Sorting key that depends on the name of a video alone and mixes folders and classes."""
    return hashlib.sha256(name.encode()).digest()


def start_of(name: str, windows: int) -> int:
    """First frame of the one clip of a video that `windows` clips could be cut from."""
    return int.from_bytes(hashlib.sha256(f"start of {name}".encode()).digest()[:8]) % windows
