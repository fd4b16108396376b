"""From sources of records to batches of clips, with grain; the training loops call it.

The order of the clips and the window of each clip in its record are pure functions of
(config.data.seed, global index of the clip), whatever the number of hosts, threads or workers. So
the whole state of an iterator is the index of the next clip.

A batch is a dict of arrays whose rows are clips: "video" uint8 [b, F, H, W, 3], or "tokens" int32
[b, T, h, w] if the sources are stored tokens, and the conditions of data/conditions.py that every
source has: "label" int32 [b], "actions" int32 [b, F].
"""

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from mebt_jax.config import Config
from mebt_jax.data import clips, conditions, token_cache
from mebt_jax.data.sources import Sources
from mebt_jax.errors import UserError

Batch = dict[str, np.ndarray]
# Batches that are prepared in advance. grain's own default of 500 would hold tens of gigabytes of
# 128-frame clips.
BATCHES_AHEAD = 4
# The rows of every batch that a host reads: the indices of its parts, and the number of even parts
# (`runtime.host_arrays.host_shard`).
Shard = tuple[tuple[int, ...], int]
WHOLE: Shard = ((0,), 1)
# Below this number of records grain's own shuffle takes longer than decoding a clip: it walks
# through a fixed range until it meets an index of the set, 25 ms over the number of records for
# each clip (grain 0.2.18).
FEW_RECORDS = 1000


class BatchIterator:
    """Endless training batches: `next()` gives this host's shard of the global batch. F is 1 in
    batches of images.

    Part p of n is the rows p * b to (p + 1) * b of the global batch, b = batch_size / n.
    """

    def __init__(self, batches: grain.MapDataset, batch_size: int, workers: int):
        self._batches = batches  # element k is this host's shard of batch k
        self._batch_size = batch_size
        self._workers = workers
        self.set_state({"next_clip": 0})

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position as plain JSON, the same on every host."""
        return {"next_clip": self._next_batch * self._batch_size}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to the position of `get_state`, also of a run with another number of hosts or
        workers.

        Raises:
            UserError: the batch size does not divide the number of clips before that position.
        """
        self._next_batch, rest = divmod(state["next_clip"], self._batch_size)
        if rest:
            raise UserError(
                f"This run has used {state['next_clip']} training clips, which the batch size "
                f"{self._batch_size} does not divide; go on with the batch size it had."
            )
        self._iterator = read(
            self._batches.slice(slice(self._next_batch, sys.maxsize)), self._workers
        )


class Shuffled:
    """Records for epoch after epoch; the order of each epoch follows from the seed."""

    def __init__(self, records: Sequence[dict], seed: int):
        self._records = records
        self._seed = seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict:
        epoch, i = divmod(int(index), len(self._records))
        return self._records[int(epoch_order(self._seed, epoch, len(self._records))[i])]


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, records: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(records)  # [records]


@dataclasses.dataclass(frozen=True)
class RandomWindow(grain.transforms.RandomMap):
    """Record -> the clip of a random window of it, as `cut` gives it."""

    frames: int
    stride: int

    def random_map(self, record: dict, rng: np.random.Generator) -> Batch:
        start = int(rng.integers(_windows(record, self.frames, self.stride)))
        return cut(record, start, self.frames, self.stride)


@dataclasses.dataclass(frozen=True)
class CentreWindow(grain.transforms.Map):
    """Record -> the clip of its middle window, as `cut` gives it."""

    frames: int
    stride: int

    def map(self, record: dict) -> Batch:
        start = _windows(record, self.frames, self.stride) // 2
        return cut(record, start, self.frames, self.stride)


def cut(record: dict, start: int, frames: int, stride: int) -> Batch:
    """The clip of a record (data/sources.py, data/token_cache.py) that begins at frame `start`.

    Returns:
        The row of a batch: "video" uint8 [F, H, W, 3], for which no other frame is decoded, or
        "tokens" int32 [T, h, w] of a record of tokens; and the conditions of the clip.
    """
    window = clips.window(start, frames, stride)
    if "codes" in record:
        row = {"tokens": token_cache.cut_tokens(record, start)}
    elif "frames" in record:
        row = {"video": clips.decode_images(record["frames"][window])}
    else:
        row = {"video": record["video"][window]}
    return row | conditions.of_clip(record, start, frames, stride)


def train_batches(
    sources: Sources, config: Config, batch_size: int, shard: Shard = WHOLE
) -> BatchIterator:
    """Endless shuffled batches; `batch_size` counts the clips of all hosts together, `shard` is
    this host's.

    Each epoch visits every record once, at a new random window. Epochs follow one another without a
    gap, so a data set may be smaller than a batch. In a mixture each source has its own epochs, and
    clips of the sources alternate in proportion to the weights. Images have another shape than
    videos, so whole batches of images and of videos alternate, in proportion to the weights too.

    Raises:
        UserError: the batch cannot be split evenly over the hosts.
    """
    data = config.data
    videos = _mix(
        sources,
        "train",
        lambda i, records: endless(records, data.frames, data.frame_stride, data.seed + i),
    )
    batches = sharded(videos, batch_size, shard)
    if sources.images:
        images = _mix(
            sources.images, "train", lambda i, records: endless(records, 1, 1, data.seed + i)
        )
        batches = grain.MapDataset.mix(
            [batches, sharded(images, batch_size, shard)], [sources.weight, sources.images.weight]
        )
    return BatchIterator(batches, batch_size, data.workers)


def endless(records: Sequence[dict], frames: int, stride: int, seed: int) -> grain.MapDataset:
    """Clips of random windows of shuffled records, epoch after epoch."""
    return shuffled(records, seed).random_map(RandomWindow(frames, stride))


def shuffled(records: Sequence, seed: int) -> grain.MapDataset:
    """The records in the order of training, or of validation, epoch after epoch."""
    if len(records) < FEW_RECORDS:
        return grain.MapDataset.source(Shuffled(records, seed)).seed(seed)
    return grain.MapDataset.source(records).seed(seed).shuffle().repeat(None)


def validation_batches(
    sources: Sources, config: Config, batch_size: int, num_batches: int, shard: Shard = WHOLE
) -> Iterator[Batch]:
    """At most `num_batches` batches of held-out clips, the same at every call: the middle window of
    each record.

    The records are shuffled, since the first ones may all be of one class. Clips that do not fill a
    last batch are left out; if there is less than one batch, clips are repeated to fill it. A
    mixture has as many clips as its sources together, in proportion to the weights, so clips of a
    small source may come again. At most as many batches of images follow.

    Raises:
        UserError: the batch cannot be split evenly over the hosts.
    """
    data = config.data

    def batches(sources: Sources, frames: int, stride: int) -> Iterator[Batch]:
        window = CentreWindow(frames, stride)
        dataset = _mix(
            sources, "validation", lambda i, records: shuffled(records, data.seed + i).map(window)
        )
        count = min(num_batches, max(1, len(sources.validation) // batch_size))
        return iter(read(sharded(dataset[: count * batch_size], batch_size, shard), workers=0))

    images = batches(sources.images, 1, 1) if sources.images else ()
    return itertools.chain(batches(sources, data.frames, data.frame_stride), images)


def _mix(
    sources: Sources, split: str, clips_of: Callable[[int, Sequence[dict]], grain.MapDataset]
) -> grain.MapDataset:
    """The clips `clips_of(i, records)` of each source i, alternating in proportion to the
    weights.
    """
    records = getattr(sources, split)
    if not sources.parts:
        return clips_of(0, records)
    edges = [0, *itertools.accumulate(getattr(part, split) for part in sources.parts)]
    datasets = [
        clips_of(i, grain.MapDataset.source(records)[first:end])
        for i, (first, end) in enumerate(itertools.pairwise(edges))
    ]
    return grain.MapDataset.mix(datasets, [part.weight for part in sources.parts])


def _windows(record: dict, frames: int, stride: int) -> int:
    """Number of frames at which a clip of the record can begin."""
    if "windows" in record:
        return record["windows"]
    return len(record["frames" if "frames" in record else "video"]) - clips.span(frames, stride) + 1


class _HostRows(grain.MapDataset):
    """The rows of each batch that a host reads, batch after batch."""

    def __init__(self, dataset: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(dataset)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index % len(self), len(self._rows))
        return self._parent[batch * self._batch_size + int(self._rows[row])]


def sharded(dataset: grain.MapDataset, batch_size: int, shard: Shard) -> grain.MapDataset:
    """Element k of the result is this host's shard of global batch k; clips of other shards are
    never read.
    """
    parts, count = shard
    if batch_size % count:
        raise UserError(
            f"The batch of {batch_size} clips does not divide into {count} parts, one for each "
            f"device or group of devices; use a multiple of {count}."
        )
    rows = np.arange(batch_size).reshape(count, -1)[list(parts)].reshape(-1)
    return _HostRows(dataset, batch_size, rows).batch(len(rows))


def read(batches: grain.MapDataset, workers: int) -> Iterator[Batch]:
    """The batches in order, prepared in advance by threads, or by `workers` processes."""
    threads = min(BATCHES_AHEAD, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BATCHES_AHEAD)
    dataset = batches.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # grain's worker processes read absl flags; notebooks and tests do not parse any.
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)
