"""The tokens of a data set, encoded once, so that the prior trains without pixels.

The record of tokens i belongs to the record of frames i, has its conditions, and has as many clips
to draw from. So the same (seed, index of the clip) gives the same clip with the cache and without.
A clip may start at any frame: for each offset of the start modulo the frames that one latent frame
covers, the cache holds the latent frames of the whole record, one offset after the other.

A tokenizer sees no pixels outside of a clip. A record longer than a clip is encoded in windows of
the length of a clip that overlap by half, and each latent frame is taken from the window whose
middle is nearest. So if the codes of a tokenizer depend on their neighbours, codes at the borders
of a clip may differ from those of the clip encoded alone. They agree exactly if no code depends on
its neighbours, and if a record is one clip (moving shapes).
"""

import collections
import dataclasses
import itertools
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
from mebt_jax.data import builder, clips, conditions, record_folders
from mebt_jax.data.sources import Sources, prepared_folder
from mebt_jax.errors import UserError

# uint8 [B, F, H, W, 3], the same on every host -> codes [B, T, h, w]
Encode = Callable[[np.ndarray], np.ndarray]
RECORDS_AHEAD = 4  # whole records of decoded frames that wait for their encoding


# ---- windows of a record -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Window:
    """A clip to encode, and the rows of its record that its latent frames fill."""

    start: int  # frame of the record
    first: int  # latent frames first to end of the clip ...
    end: int
    row: int  # ... become the rows from here on


def row_counts(windows: int, latent_frames: int, period: int) -> list[int]:
    """Rows (latent frames) of a record for each offset of the start of a clip.

    Args:
        windows: number of frames at which a clip of the record can start.
        latent_frames: T, of a clip.
        period: frames of the record from one latent frame to the next.
    """
    return [
        latent_frames + (windows - 1 - offset) // period for offset in range(min(period, windows))
    ]


def windows_of(windows: int, latent_frames: int, period: int) -> Iterator[Window]:
    """The clips to encode of one record; together they fill each of its rows once."""
    base = 0
    for offset, rows in enumerate(row_counts(windows, latent_frames, period)):
        last = rows - latent_frames
        starts = [*range(0, last, max(1, latent_frames // 2)), last]
        edges = [0, *((a + b + latent_frames) // 2 for a, b in itertools.pairwise(starts)), rows]
        for start, first, end in zip(starts, edges, edges[1:]):
            yield Window(offset + start * period, first - start, end - start, base + first)
        base += rows


def cut_tokens(record: dict, start: int) -> np.ndarray:
    """Codes int32 [T, h, w] of the clip that starts at frame `start` of a record of TokenSource."""
    period, latent_frames = record["period"], record["latent_frames"]
    rows = row_counts(record["windows"], latent_frames, period)
    first = sum(rows[: start % period]) + start // period
    return record["codes"][first : first + latent_frames].astype(np.int32)


# ---- reading -------------------------------------------------------------------------------------


class TokenSource:
    """[i] -> {"codes": [rows, h, w], "windows", "latent_frames", "period"} and the conditions of
    the record: what pipeline.cut takes a clip's codes from.
    """

    def __init__(self, folder: Path, split: str, manifest: dict) -> None:
        self._records = builder.open_records(folder, split)
        self._grid = tuple(manifest["grid"])
        self._period, self._dtype = manifest["period"], manifest["dtype"]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        codes = np.frombuffer(record["codes"], self._dtype).reshape(-1, *self._grid[1:])
        return {
            "codes": codes,
            "windows": int(record["windows"]),
            "latent_frames": self._grid[0],
            "period": self._period,
        } | _stored_conditions(record)


def open_tokens(folder: Path, key: dict) -> Sources:
    """The tokens in `folder`; those of an earlier version have no conditions.

    Raises:
        UserError: they are of another tokenizer or of other data than `key` says.
    """
    manifest = record_folders.read_manifest(folder)
    for name, what in (("tokenizer", "by tokenizer"), ("data", "from records")):
        if manifest[name] != key[name]:
            raise UserError(
                f"The tokens in {folder} were made {what} {manifest[name]}, but this run has "
                f"{key[name]}; remove {folder} to encode the set anew, or set config.data.tokens "
                "to False."
            )
    sources = [TokenSource(folder, split, manifest) for split in ("train", "validation")]
    return Sources(
        *sources,
        config_lib.content_hash(manifest),
        classes=tuple(manifest.get("classes", ())),
    )


def check(config: Config, workdir: Path, sources: Sources) -> list[str]:
    """Verifies the tokens of these sources, by whatever tokenizer; returns a line for each set of
    tokens that it is as it was written.

    Raises:
        UserError: some are damaged.
    """
    lines = []
    for folder in sorted(prepared_folder(config, workdir).glob("tokens_*")):
        if folder.name.endswith(".unfinished"):
            continue
        manifest = record_folders.read_manifest(folder)
        if manifest["data"] == sources.content_hash:
            (latent_frames, *sides), period = manifest["grid"], manifest["period"]

            def is_sound(record: dict) -> bool:
                rows = sum(row_counts(int(record["windows"]), latent_frames, period))
                size = rows * math.prod(sides) * np.dtype(manifest["dtype"]).itemsize
                return len(record["codes"]) == size

            line = record_folders.check_records(folder, is_sound)
            lines.append(f"tokens by tokenizer {manifest['tokenizer']}: {line}")
    return lines


# ---- writing -------------------------------------------------------------------------------------


class TokenRecords(builder.Records):
    """Codes of the records of a data set under one tokenizer."""

    description = "Codes of videos."


# Besides the conditions; actions are the bytes of int32 [F'].
TOKEN_FEATURES = {"codes": tfds.features.Text(), "windows": np.int64}
CONDITION_FEATURES = {"label": np.int64, "actions": tfds.features.Text()}


@dataclasses.dataclass(frozen=True)
class TokenRecord:
    """The tokens of one record."""

    windows: int  # number of frames at which a clip of the record can start
    codes: np.ndarray  # [rows, h, w]
    conditions: dict[str, np.ndarray]


def prepare(
    config: Config, workdir: Path, sources: Sources, tokenizer_hash: str, encode: Encode
) -> Sources:
    """The set of `sources` as tokens, encoded now if they are not there yet.

    Every host encodes its rows of each batch; the first one writes. An encoding that was
    interrupted goes on.

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
    if not exists_everywhere(folder):
        dtype = "uint16" if config.tokenizer.codebook_size <= 2**16 else "int32"
        manifest = {**key, "dtype": dtype, "classes": list(sources.classes)}
        with record_folders.disk_full_as_sentence(folder.parent):
            write(folder, config, sources, manifest, encode)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the tokens are written")
    stored = open_tokens(folder, key)
    return dataclasses.replace(stored, weight=sources.weight, parts=sources.parts)


def write(folder: Path, config: Config, sources: Sources, manifest: dict, encode: Encode) -> None:
    """Encodes both splits in parts, each of them one file of records, and completes the folder."""
    names = list(conditions.of_record(sources.train[0]))
    features = tfds.features.FeaturesDict(
        TOKEN_FEATURES | {name: CONDITION_FEATURES[name] for name in names}
    )
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    # Parts with other features, which an earlier version began, are of no use.
    parts = unfinished / "_".join(["parts", *names])
    parts.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[builder.RecordFile]] = {}
    for split in ("train", "validation"):
        source = getattr(sources, split)
        size = math.ceil(len(source) / record_folders.MAX_FILES)
        files[split] = []
        for first in tqdm(range(0, len(source), size), desc=f"encoding {split} clips", unit="part"):
            indices = range(first, min(first + size, len(source)))
            path = parts / f"{split}-{first // size:05d}"
            done = path.with_name(f"{path.name}.json")
            if not exists_everywhere(done):
                records = encode_records(source, indices, config, manifest, encode)
                if jax.process_index() == 0:
                    write_part(path, records, features)
                    record_folders.replace_json(done, {"records": len(indices)})
            files[split].append(builder.RecordFile(path, len(indices)))
    if jax.process_index() == 0:
        record_folders.finish(unfinished, files, features, TokenRecords)
        manifest = {
            **manifest,
            "records": {split: len(getattr(sources, split)) for split in files},
            "files": record_folders.file_digests(unfinished),
        }
        record_folders.write_manifest(unfinished, manifest)
        unfinished.rename(folder)
        for left in folder.glob("parts*"):
            shutil.rmtree(left)


def encode_records(
    source: Sequence[dict], indices: range, config: Config, manifest: dict, encode: Encode
) -> list[TokenRecord]:
    """The records of these indices as tokens, encoded in batches that mix their clips."""
    data, (latent_frames, *sides), period = config.data, manifest["grid"], manifest["period"]
    span, size = clips.span(data.frames, data.frame_stride), config.prior.training.batch_size
    records: list[TokenRecord] = []

    def windows() -> Iterator[tuple[np.ndarray, Window, np.ndarray]]:
        """(clip [F, H, W, 3], window, rows of the record that it fills in part)."""
        for video, of_record in decoded(source, indices):  # [F', H, W, 3]
            count = len(video) - span + 1
            rows = sum(row_counts(count, latent_frames, period))
            record = TokenRecord(count, np.zeros((rows, *sides), manifest["dtype"]), of_record)
            records.append(record)
            for window in windows_of(count, latent_frames, period):
                frames = clips.window(window.start, data.frames, data.frame_stride)
                yield video[frames], window, record.codes

    queue = windows()
    while batch := list(itertools.islice(queue, size)):
        padded = np.stack([clip for clip, _, _ in batch] + [batch[-1][0]] * (size - len(batch)))
        for (_, window, rows), codes in zip(batch, encode(padded)):
            rows[window.row : window.row + window.end - window.first] = codes[
                window.first : window.end
            ]
    return records


def decoded(
    source: Sequence[dict], indices: range
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(uint8 [F', H, W, 3], conditions) of the records of these indices; some records are decoded
    in advance.
    """

    def decode(index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        record = source[index]
        video = clips.decode_images(record["frames"]) if "frames" in record else record["video"]
        return video, conditions.of_record(record)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = collections.deque()
        for index in indices:
            waiting.append(pool.submit(decode, index))
            if len(waiting) > RECORDS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_part(
    path: Path, records: Sequence[TokenRecord], features: tfds.features.FeaturesDict
) -> None:
    """Writes one file of records."""
    writer = ArrayRecordWriter(str(path), builder.WRITER_OPTIONS)
    for record in records:
        stored = {"codes": record.codes.tobytes(), "windows": record.windows}
        for name, value in record.conditions.items():
            stored[name] = value.tobytes() if value.ndim else int(value)
        writer.write(features.serialize_example(stored))
    writer.close()


def _stored_conditions(record: dict) -> dict[str, np.ndarray]:
    """The conditions in a stored record."""
    plain = {name: record[name] for name in conditions.NAMES if name in record}
    if "actions" in plain:
        plain["actions"] = np.frombuffer(plain["actions"], np.int32)
    return conditions.of_record(plain)


def exists_everywhere(path: Path) -> bool:
    """Whether the first process finds the file; the same answer on all processes, which must do
    the same work.
    """
    exists = path.exists()
    if jax.process_count() == 1:
        return exists
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(exists)))
