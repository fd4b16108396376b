"""From sources of records to batches of clips, with grain; the training loops call it.

The order of the clips and the place of each window are pure functions of (config.data.seed, global
clip number), whatever the number of hosts, threads or workers. So the whole state of an iterator is
the number of the next clip.
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
from mebt_jax.data import clips, token_cache
from mebt_jax.data.sources import Sources
from mebt_jax.errors import UserError

# Batches made ahead. grain's own default of 500 would hold tens of gigabytes of 128-frame clips.
BATCHES_AHEAD = 4
# Which parts of every batch a host reads, and of how many even ones (`runtime.mesh.host_share`).
Share = tuple[tuple[int, ...], int]
WHOLE: Share = ((0,), 1)
# Below this number of records grain's own shuffle takes longer than decoding a clip: it walks
# through a fixed range until it meets a number in the set, 25 ms over the number of records for
# each clip (grain 0.2.18).
FEW_RECORDS = 1000


class BatchIterator:
    """Endless training batches: `next()` -> {"video": uint8 [b, F, H, W, 3]}, this host's share of
    the global batch, or {"codes": int32 [b, T, h, w]} of sources of tokens. F is 1 in batches of
    images.

    Part p of n is the rows p * b to (p + 1) * b of the global batch, b = batch_size / n.
    """

    def __init__(self, batches: grain.MapDataset, batch_size: int, workers: int):
        self._batches = batches  # element k is this host's share of batch k
        self._batch_size = batch_size
        self._workers = workers
        self.set_state({"next_clip": 0})

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Fit for JSON, and the same on every host."""
        return {"next_clip": self._next_batch * self._batch_size}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `get_state` was called, in this or in another run, with any number of hosts
        and workers.

        Raises:
            UserError: the batch size now does not divide the number of clips seen.
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
    """The records of epoch after epoch, each in an order of its own that follows from the seed."""

    def __init__(self, records: Sequence[dict], seed: int):
        self._records = records
        self._seed = seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict:
        epoch, place = divmod(int(index), len(self._records))
        return self._records[int(epoch_order(self._seed, epoch, len(self._records))[place])]


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, records: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(records)  # [records]


@dataclasses.dataclass(frozen=True)
class RandomWindow(grain.transforms.RandomMap):
    """Record -> a clip at a random place in it, {"video"} or, of tokens, {"codes"}."""

    frames: int
    stride: int

    def random_map(self, record: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        start = int(rng.integers(_windows(record, self.frames, self.stride)))
        return cut(record, start, self.frames, self.stride)


@dataclasses.dataclass(frozen=True)
class CentreWindow(grain.transforms.Map):
    """Record -> the clip in the middle of it, {"video"} or, of tokens, {"codes"}."""

    frames: int
    stride: int

    def map(self, record: dict) -> dict[str, np.ndarray]:
        start = _windows(record, self.frames, self.stride) // 2
        return cut(record, start, self.frames, self.stride)


def cut(record: dict, start: int, frames: int, stride: int) -> dict[str, np.ndarray]:
    """The clip of a record (data/sources.py, data/token_cache.py) that starts at `start`.

    Returns:
        {"video": uint8 [F, H, W, 3]}, and no other frame is decoded; or {"codes": int32 [T, h, w]}
        of a record of tokens.
    """
    if "codes" in record:
        return {"codes": token_cache.cut_codes(record, start)}
    window = slice(start, start + clips.span(frames, stride), stride)
    return {
        "video": clips.decode_images(record["frames"][window])
        if "frames" in record
        else record["video"][window]
    }


def train_batches(
    sources: Sources, config: Config, batch_size: int, share: Share = WHOLE
) -> BatchIterator:
    """Endless shuffled batches; `batch_size` counts the clips of all hosts together, `share` is
    this host's.

    Each epoch visits every record once, at a new random window; epochs follow one another without a
    gap, so a data set smaller than a batch works too. In a mixture each source has epochs of its
    own, and clips take turns by the weights. Images have another shape than videos, so whole
    batches of them take turns with batches of videos, by the weights too.

    Raises:
        UserError: the hosts cannot share the batch evenly.
    """
    data = config.data
    videos = _mix(
        sources,
        "train",
        lambda i, records: endless(records, data.frames, data.frame_stride, data.seed + i),
    )
    batches = shared(videos, batch_size, share)
    if sources.images:
        images = _mix(
            sources.images, "train", lambda i, records: endless(records, 1, 1, data.seed + i)
        )
        batches = grain.MapDataset.mix(
            [batches, shared(images, batch_size, share)], [sources.weight, sources.images.weight]
        )
    return BatchIterator(batches, batch_size, data.workers)


def endless(records: Sequence[dict], frames: int, stride: int, seed: int) -> grain.MapDataset:
    """Clips at random places of shuffled records, epoch after epoch."""
    return shuffled(records, seed).random_map(RandomWindow(frames, stride))


def shuffled(records: Sequence, seed: int) -> grain.MapDataset:
    """The records in the order of training, or of validation, epoch after epoch."""
    if len(records) < FEW_RECORDS:
        return grain.MapDataset.source(Shuffled(records, seed)).seed(seed)
    return grain.MapDataset.source(records).seed(seed).shuffle().repeat(None)


def validation_batches(
    sources: Sources, config: Config, batch_size: int, num_batches: int, share: Share = WHOLE
) -> Iterator[dict[str, np.ndarray]]:
    """At most `num_batches` batches of held-out clips, the same at every call: the middle window of
    each record.

    They are drawn over the whole set, since its first records may all be of one class. The clips
    that do not fill a last batch are left out; where there is less than one batch, it is filled by
    repeating them. A mixture has as many clips as its sources together, taken by the weights, where
    the clips of one may come again. As many batches of images follow, at most.

    Raises:
        UserError: the hosts cannot share the batch evenly.
    """
    data = config.data

    def batches(sources: Sources, frames: int, stride: int) -> Iterator[dict[str, np.ndarray]]:
        window = CentreWindow(frames, stride)
        dataset = _mix(
            sources, "validation", lambda i, records: shuffled(records, data.seed + i).map(window)
        )
        number = min(num_batches, max(1, len(sources.validation) // batch_size))
        return iter(read(shared(dataset[: number * batch_size], batch_size, share), workers=0))

    of_images = batches(sources.images, 1, 1) if sources.images else ()
    return itertools.chain(batches(sources, data.frames, data.frame_stride), of_images)


def _mix(
    sources: Sources, split: str, clips_of: Callable[[int, Sequence[dict]], grain.MapDataset]
) -> grain.MapDataset:
    """The clips that `clips_of(number, records)` makes of each source, taking turns by the
    weights.
    """
    records = getattr(sources, split)
    if not sources.parts:
        return clips_of(0, records)
    edges = [0, *itertools.accumulate(getattr(part, split) for part in sources.parts)]
    each = [
        clips_of(i, grain.MapDataset.source(records)[first:end])
        for i, (first, end) in enumerate(itertools.pairwise(edges))
    ]
    return grain.MapDataset.mix(each, [part.weight for part in sources.parts])


def _windows(record: dict, frames: int, stride: int) -> int:
    if "windows" in record:
        return record["windows"]
    return len(record["frames" if "frames" in record else "video"]) - clips.span(frames, stride) + 1


class _RowsOfHost(grain.MapDataset):
    """The rows of each batch that a host reads, one batch after the other."""

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


def shared(dataset: grain.MapDataset, batch_size: int, share: Share) -> grain.MapDataset:
    """Element k of the result is this host's share of global batch k; the other shares are never
    made.
    """
    parts, number = share
    if batch_size % number:
        raise UserError(
            f"The batch of {batch_size} clips does not divide into {number} parts, one for each "
            "device or group of "
            f"devices; use a multiple of {number}."
        )
    rows = np.arange(batch_size).reshape(number, -1)[list(parts)].reshape(-1)
    return _RowsOfHost(dataset, batch_size, rows).batch(len(rows))


def read(batches: grain.MapDataset, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches in order, made ahead by threads, or by `workers` processes."""
    threads = min(BATCHES_AHEAD, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BATCHES_AHEAD)
    dataset = batches.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # grain's worker processes read absl flags; notebooks and tests do not parse any
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)
