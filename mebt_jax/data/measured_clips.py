"""The real clips that the evaluate stage measures: one clip of every video of a split.

Training visits records instead (data/pipeline.py), of which a long video has several.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from mebt_jax.config import Config
from mebt_jax.data import builder, pipeline, record_folders, sources

MAX_SHAPES = 20_000  # clips of moving shapes: twice the most that any protocol compares
SPLITS = {"validation": "held-out", "train": "training"}  # names in texts


class ClipPerVideo:
    """One clip of each video of a split: `len`, and `[i]` -> the row of a batch of
    data/pipeline.py, with "video" uint8 [F, H, W, 3]; decodes nothing else.

    The order of the videos follows from their names and mixes classes, so the first n are a fair
    sample of all classes. The first frame of each clip follows from the name of its video. The
    sources of a mixture alternate in proportion to their weights.
    """

    def __init__(
        self, records: Sequence[Sequence[dict]], windows: np.ndarray, config: Config, text: str
    ):
        self._records = records  # of each source
        self._windows = windows  # [videos, 3]: source, record of it, first frame in that
        self._frames, self._stride = config.data.frames, config.data.frame_stride
        self.text = text  # describes the clips in the string of a protocol

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> pipeline.Batch:
        source, record, start = self._windows[index].tolist()
        return pipeline.cut(self._records[source][record], start, self._frames, self._stride)

    def batches(
        self, size: int, count: int, shard: pipeline.Shard = pipeline.WHOLE
    ) -> Iterator[pipeline.Batch]:
        """This host's shard of batches of `size` clips: the first `count` clips, or all if there
        are fewer.

        Repetitions of the last clip fill the last batch; the caller leaves out their results.
        """
        count = min(count, len(self))
        order = np.minimum(np.arange(-(-count // size) * size), count - 1)
        dataset = grain.MapDataset.source(order).map(lambda index: self[int(index)])
        return iter(pipeline.read(pipeline.sharded(dataset, size, shard), workers=0))


def open_clips(config: Config, workdir: Path, split: str) -> ClipPerVideo:
    """The clips of "train" or "validation".

    Raises:
        UserError: there are no records of these settings.
    """
    windows, turns, texts = [], [], []
    opened = sources.open_video_parts(config, workdir)
    records = [getattr(source, split) for source in opened]
    for i, (weight, part) in enumerate(sources.video_parts(config)):
        if part.data.source == "moving_shapes":
            of_source, text = windows_of_shapes(split, len(records[i]), config.data.seed + i), ""
        else:
            of_source, text = windows_of_videos(part, workdir, split)
        windows.append(np.insert(of_source, 0, i, axis=1))
        turns.append((np.arange(len(of_source)) + 0.5) / weight)
        texts.append(text)
    order = np.argsort(np.concatenate(turns), kind="stable")
    return ClipPerVideo(
        records,
        np.concatenate(windows)[order],
        config,
        f"{SPLITS[split]}{' and '.join(dict.fromkeys(texts))}",
    )


def windows_of_shapes(split: str, count: int, seed: int) -> np.ndarray:
    """(record, first frame) of clips of moving shapes, [n, 2]. Training clips come in the order of
    training: a run that ended early cannot have memorised clips that it has not seen.
    """
    order = np.arange(min(count, MAX_SHAPES))
    if split == "train":
        seen = pipeline.shuffled(range(count), seed)
        order = np.array([seen[int(i)] for i in order])
    return np.stack([order, np.zeros_like(order)], axis=1)


def windows_of_videos(config: Config, workdir: Path, split: str) -> tuple[np.ndarray, str]:
    """((record, first frame) of the one clip of each video of a source [videos, 2], a description
    of these clips).
    """
    manifest = record_folders.read_manifest(sources.existing_records(config, workdir))
    # A single video serves for both splits.
    videos = manifest["used"].get(split, manifest["used"]["train"])
    settings = manifest["settings"]
    windows, first = {}, 0
    for name, frames in videos.items():
        bounds = builder.record_bounds(frames, settings["span"], settings["record_frames"])
        start = start_of(name, frames - settings["span"] + 1)
        record = max(k for k, (begin, _) in enumerate(bounds) if begin <= start)
        windows[name] = (first + record, start - bounds[record][0])
        first += len(bounds)
    quality = settings["jpeg_quality"]
    return (
        np.array([windows[name] for name in sorted(videos, key=order_key)]),
        f", one clip per video at a random start{f', JPEG {quality}' if quality else ''}",
    )


def real_split(config: Config, workdir: Path) -> str:
    """The split from which the papers on this set take real clips for their distances, as the
    manifest says; "validation" for other sets and for mixtures of both.
    """
    splits = {
        "validation"
        if part.data.source == "moving_shapes"
        else record_folders.read_manifest(sources.existing_records(part, workdir)).get(
            "real_split", "validation"
        )
        for _, part in sources.video_parts(config)
    }
    return splits.pop() if len(splits) == 1 else "validation"


def order_key(name: str) -> bytes:
    """Sorting key that follows from the name of a video alone and mixes folders and classes."""
    return hashlib.sha256(name.encode()).digest()


def start_of(name: str, windows: int) -> int:
    """First frame of the one clip of a video, of the `windows` frames at which it can begin."""
    return int.from_bytes(hashlib.sha256(f"start of {name}".encode()).digest()[:8]) % windows
