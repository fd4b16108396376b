"""The tokens of a data set, encoded once, so that the transformer trains without pixels.

The record of tokens i belongs to the record of frames i and has as many clips to draw from, so that
the same (seed, clip number) gives the same clip with the cache and without. A clip may start at any
frame: for each offset of the start modulo the frames that one latent frame covers, the latent
frames of the whole record are kept, one after another.

A tokenizer sees a clip's neighbours only as far as the clip goes. A record longer than a clip is
encoded in windows of the length of a clip that overlap by half, and each latent frame is taken from
the window in whose middle it lies nearest. So where the codes of a tokenizer depend on their
neighbours, those at the borders of a clip may differ from those of the clip encoded alone; they
agree exactly where no code depends on its neighbours, and where a record is one clip (moving
shapes).
"""

import collections
import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jax.experimental import multihost_utils
from tqdm import tqdm

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data import builder, clips, preparation
from mebt_jax.data.sources import Sources, prepared_folder
from mebt_jax.errors import UserError

Encode = Callable[
    [np.ndarray], np.ndarray
]  # uint8 [B, F, H, W, 3], the same on every host -> codes [B, T, h, w]
RECORDS_AHEAD = 4  # whole records of decoded frames that wait


@dataclasses.dataclass(frozen=True)
class Window:
    """A clip to encode, and which of its latent frames go where in the rows of its record."""

    start: int  # frame of the record
    first: int  # latent frames first to end of the clip ...
    end: int
    row: int  # ... become the rows from here on


def row_counts(windows: int, latents: int, period: int) -> list[int]:
    """Latent frames of a record at each offset, where its clips may start at `windows` frames.

    Args:
        windows: number of places at which a clip of the record can start.
        latents: T, latent frames of a clip.
        period: frames of the record from one latent frame to the next.
    """
    return [latents + (windows - 1 - offset) // period for offset in range(min(period, windows))]


def windows_of(windows: int, latents: int, period: int) -> Iterator[Window]:
    """The clips to encode of one record; their latent frames fill each of its rows once."""
    base = 0
    for offset, rows in enumerate(row_counts(windows, latents, period)):
        starts = [*range(0, rows - latents, max(1, latents // 2)), rows - latents]
        edges = [0, *((a + b + latents) // 2 for a, b in itertools.pairwise(starts)), rows]
        for start, first, end in zip(starts, edges, edges[1:]):
            yield Window(offset + start * period, first - start, end - start, base + first)
        base += rows


class TokenSource:
    """[i] -> {"codes": [rows, h, w], "windows", "latents", "period"}: what pipeline.cut takes a
    clip's codes from.
    """

    def __init__(self, folder: Path, split: str, manifest: dict) -> None:
        self._records = builder.open_records(folder, split)
        self._grid, self._period, self._dtype = (
            tuple(manifest["grid"]),
            manifest["period"],
            manifest["dtype"],
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        codes = np.frombuffer(record["codes"], self._dtype).reshape(-1, *self._grid[1:])
        return {
            "codes": codes,
            "windows": int(record["windows"]),
            "latents": self._grid[0],
            "period": self._period,
        }


def cut_codes(record: dict, start: int) -> np.ndarray:
    """Codes int32 [T, h, w] of the clip that starts at frame `start` of a record of TokenSource."""
    period, latents = record["period"], record["latents"]
    base = sum(row_counts(record["windows"], latents, period)[: start % period]) + start // period
    return record["codes"][base : base + latents].astype(np.int32)


class TokenRecords(builder.Records):
    """Codes of the records of a data set under one tokenizer."""

    description = "Codes of videos."


FEATURES = tfds.features.FeaturesDict({"codes": tfds.features.Text(), "windows": np.int64})


def prepare(
    config: Config, workdir: Path, sources: Sources, tokenizer_hash: str, encode: Encode
) -> Sources:
    """The set of `sources` as tokens, encoded now unless that is done already.

    Every host encodes its share of each batch; the first writes. An encoding that was interrupted
    goes on.

    Raises:
        UserError: the tokens there are of another tokenizer or other data, or the disk is full.
    """
    period = config.tokenizer.compression[0] * config.data.frame_stride
    key = {
        "tokenizer": tokenizer_hash,
        "data": sources.content_hash,
        "grid": list(config.grid),
        "period": period,
    }
    folder = prepared_folder(config, workdir) / f"tokens_{config_lib.content_hash(key)}"
    if not shared_exists(folder):
        dtype = "uint16" if config.tokenizer.codes <= 2**16 else "int32"
        with preparation.full_disk_in_one_sentence(folder.parent):
            write(folder, config, sources, {**key, "dtype": dtype}, encode)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the tokens are written")
    stored = open_tokens(folder, key)
    return dataclasses.replace(stored, weight=sources.weight, parts=sources.parts)


def open_tokens(folder: Path, key: dict) -> Sources:
    """The tokens in `folder`; raises UserError if they are of another tokenizer or of other data
    than `key` says.
    """
    manifest = preparation.read_manifest(folder)
    for name, what in (("tokenizer", "by tokenizer"), ("data", "from records")):
        if manifest[name] != key[name]:
            raise UserError(
                f"The tokens in {folder} were made {what} {manifest[name]}, but this run has "
                f"{key[name]}; remove "
                f"{folder} to encode the set anew, or set config.data.tokens to False."
            )
    sources = [TokenSource(folder, split, manifest) for split in ("train", "validation")]
    return Sources(*sources, config_lib.content_hash(manifest))


def check(config: Config, workdir: Path, sources: Sources) -> list[str]:
    """Verifies the tokens of these sources, by whatever tokenizer; a line for each that says that
    they are as they were written.

    Raises:
        UserError: some are damaged.
    """
    lines = []
    for folder in sorted(prepared_folder(config, workdir).glob("tokens_*")):
        manifest = (
            preparation.read_manifest(folder) if not folder.name.endswith(".unfinished") else {}
        )
        if manifest.get("data") == sources.content_hash:
            (latents, *place), period = manifest["grid"], manifest["period"]

            def sound(record: dict) -> bool:
                codes = sum(row_counts(int(record["windows"]), latents, period)) * math.prod(place)
                return len(record["codes"]) == codes * np.dtype(manifest["dtype"]).itemsize

            lines.append(
                f"tokens by tokenizer {manifest['tokenizer']}: "
                f"{preparation.check_records(folder, sound)}"
            )
    return lines


def write(folder: Path, config: Config, sources: Sources, manifest: dict, encode: Encode) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    parts = unfinished / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[builder.RecordFile]] = {}
    for split in ("train", "validation"):
        source = getattr(sources, split)
        size = math.ceil(len(source) / preparation.MAX_PARTS)
        files[split] = []
        for first in tqdm(range(0, len(source), size), desc=f"encoding {split} clips", unit="part"):
            indices = range(first, min(first + size, len(source)))
            path, done = (
                parts / f"{split}-{first // size:05d}",
                parts / f"{split}-{first // size:05d}.json",
            )
            if not shared_exists(done):
                codes = encode_records(source, indices, config, manifest, encode)
                if jax.process_index() == 0:
                    write_part(path, codes)
                    preparation.replace_json(done, {"records": len(indices)})
            files[split].append(builder.RecordFile(path, len(indices)))
    if jax.process_index() == 0:
        preparation.finish(unfinished, files, FEATURES, TokenRecords)
        manifest = {
            **manifest,
            "records": {split: len(getattr(sources, split)) for split in files},
            "files": preparation.file_digests(unfinished),
        }
        (unfinished / preparation.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.rename(folder)
        shutil.rmtree(folder / "parts")


def encode_records(
    source: Sequence[dict], indices: range, config: Config, manifest: dict, encode: Encode
) -> list[tuple[int, np.ndarray]]:
    """(windows, codes [rows, h, w]) of the records of these numbers, encoded in batches across
    them.
    """
    data, (latents, height, width), period = config.data, manifest["grid"], manifest["period"]
    span, size = clips.span(data.frames, data.frame_stride), config.transformer.training.batch_size
    found: list[tuple[int, np.ndarray]] = []

    def work() -> Iterator[tuple[np.ndarray, Window, np.ndarray]]:
        for video in decoded(source, indices):  # [F', H, W, 3]
            windows = len(video) - span + 1
            rows = np.zeros(
                (sum(row_counts(windows, latents, period)), height, width), manifest["dtype"]
            )
            found.append((windows, rows))
            for window in windows_of(windows, latents, period):
                yield video[window.start : window.start + span : data.frame_stride], window, rows

    queue = work()
    while batch := list(itertools.islice(queue, size)):
        padded = np.stack([clip for clip, _, _ in batch] + [batch[-1][0]] * (size - len(batch)))
        for (_, window, rows), codes in zip(batch, encode(padded)):
            rows[window.row : window.row + window.end - window.first] = codes[
                window.first : window.end
            ]
    return found


def decoded(source: Sequence[dict], indices: range) -> Iterator[np.ndarray]:
    """uint8 [F', H, W, 3] of the records of these numbers, some of them made ahead."""

    def frames(index: int) -> np.ndarray:
        record = source[index]
        return clips.decode_images(record["frames"]) if "frames" in record else record["video"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = collections.deque()
        for index in indices:
            waiting.append(pool.submit(frames, index))
            if len(waiting) > RECORDS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_part(path: Path, codes: Sequence[tuple[int, np.ndarray]]) -> None:
    writer = ArrayRecordWriter(str(path), builder.WRITER_OPTIONS)
    for windows, rows in codes:
        writer.write(FEATURES.serialize_example({"codes": rows.tobytes(), "windows": windows}))
    writer.close()


def shared_exists(path: Path) -> bool:
    """Whether the first process finds the file: all processes must do the same work."""
    found = path.exists()
    return (
        bool(multihost_utils.broadcast_one_to_all(np.bool_(found)))
        if jax.process_count() > 1
        else found
    )
