"""The clips that numbers are measured on: one of each video of a split, once each, and where the
real ones come from.

The evaluate stage uses this; training visits records instead (data/pipeline.py), of which a long
video has several.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from mebt_jax.config import Config
from mebt_jax.data import builder, pipeline, preparation, sources

MOST_DRAWN = 20_000  # clips of moving shapes: twice the most that any protocol compares
SPLITS = {"validation": "held-out", "train": "training"}  # what people call them


class ClipPerVideo:
    """One clip of each video of a split: `len`, and `[i]` -> {"video": uint8 [F, H, W, 3]}; decodes
    nothing else.

    The videos come in an order that follows from their names and mixes classes, so that the first n
    are no choice of classes; each clip starts at a place that follows from its video's name. The
    sources of a mixture take turns by their weights.
    """

    def __init__(
        self, records: Sequence[Sequence[dict]], places: np.ndarray, config: Config, text: str
    ):
        self._records = records  # of each source
        self._places = places  # [videos, 3]: source, record of it, first frame in that
        self._frames, self._stride = config.data.frames, config.data.frame_stride
        self.text = text  # what they are, for the string of a protocol

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        source, record, start = self._places[index].tolist()
        return pipeline.cut(self._records[source][record], start, self._frames, self._stride)

    def batches(
        self, size: int, count: int, share: pipeline.Share = pipeline.WHOLE
    ) -> Iterator[dict[str, np.ndarray]]:
        """This host's share of batches of `size` clips, the first `count` or as many as there are.

        The last batch is filled up with its last clip, so that none is left out; who measures
        leaves those rows away.
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
    records, places, turns, texts = [], [], [], []
    for i, (weight, part) in enumerate(video_parts(config)):
        opened = sources.open_part(part, workdir)
        records.append(opened.train if split == "train" else opened.validation)
        if part.data.source == "moving_shapes":
            found, text = places_of_shapes(split, len(records[-1]), config.data.seed + i), ""
        else:
            found, text = places_of_videos(part, workdir, split)
        places.append(np.insert(found, 0, i, axis=1))
        turns.append((np.arange(len(found)) + 0.5) / weight)
        texts.append(text)
    order = np.argsort(np.concatenate(turns), kind="stable")
    return ClipPerVideo(
        records,
        np.concatenate(places)[order],
        config,
        f"{SPLITS[split]}{' and '.join(dict.fromkeys(texts))}",
    )


def places_of_shapes(split: str, count: int, seed: int) -> np.ndarray:
    """Record and first frame of clips that are drawn each by itself, [n, 2]; for training in the
    order in which it sees them.

    A run may end before it has seen all, and what it has not seen it cannot have memorised.
    """
    order = np.arange(min(count, MOST_DRAWN))
    if split == "train":
        seen = pipeline.shuffled(range(count), seed)
        order = np.array([seen[int(i)] for i in order])
    return np.stack([order, np.zeros_like(order)], axis=1)


def places_of_videos(config: Config, workdir: Path, split: str) -> tuple[np.ndarray, str]:
    """(record and first frame of the one clip of each video of a source [videos, 2], how they are
    made).
    """
    manifest = preparation.read_manifest(sources.existing_records(config, workdir))
    videos = manifest["used"].get(
        split, manifest["used"]["train"]
    )  # a single video serves for both
    settings = manifest["settings"]
    places, first = {}, 0
    for name, frames in videos.items():
        bounds = builder.record_bounds(frames, settings["span"], settings["record_frames"])
        start = start_of(name, frames - settings["span"] + 1)
        place = max(k for k, (begin, _) in enumerate(bounds) if begin <= start)
        places[name] = (first + place, start - bounds[place][0])
        first += len(bounds)
    quality = settings["jpeg_quality"]
    return (
        np.array([places[name] for name in sorted(videos, key=order_key)]),
        f", one clip per video at a random start{f', JPEG {quality}' if quality else ''}",
    )


def real_split(config: Config, workdir: Path) -> str:
    """The split that the papers on this set take for the real clips of their distances, as the
    manifest says; else held-out.
    """
    splits = {
        "validation"
        if part.data.source == "moving_shapes"
        else preparation.read_manifest(sources.existing_records(part, workdir)).get(
            "real_split", "validation"
        )
        for _, part in video_parts(config)
    }
    return splits.pop() if len(splits) == 1 else "validation"


def video_parts(config: Config) -> list[tuple[float, Config]]:
    """(weight, config) of each source whose clips are as long as the run's; images beside videos
    are not measured.
    """
    return [
        (part.weight, found)
        for part, found in zip(config.data.parts, sources.parts_of(config), strict=True)
        if found.data.frames == config.data.frames
    ]


def order_key(name: str) -> bytes:
    """Sorting key that depends on the name of a video alone and mixes folders and classes."""
    return hashlib.sha256(name.encode()).digest()


def start_of(name: str, windows: int) -> int:
    """First frame of the one clip of a video that `windows` clips could be cut from."""
    return int.from_bytes(hashlib.sha256(f"start of {name}".encode()).digest()[:8]) % windows
