"""A folder of finished record files with its manifest: how it is completed, checked and read.

data/preparation.py fills such folders with frames, data/token_cache.py with tokens.
"""

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mebt_jax.data import builder, clips, downloads
from mebt_jax.data.builder import RecordFile
from mebt_jax.errors import UserError

MANIFEST = "manifest.json"
# Files per split at most: reading keeps all of them open, and systems allow about a thousand.
MAX_FILES = 256


def finish(
    folder: Path,
    files: dict[str, list[RecordFile]],
    features: tfds.features.FeaturesDict,
    builder_class: type[builder.Records],
) -> None:
    """Hands finished files to the builder of the set, which names them and writes its metadata
    below `folder`.
    """
    for earlier in folder.glob("*_records"):
        shutil.rmtree(earlier)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # tfds announces a download, and there is none
        builder_class(str(folder), features, files).download_and_prepare()


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of records, by its path in the folder."""
    files = sorted(folder.glob("*_records/*/*.array_record-*"))
    with threads() as pool:
        digests = pool.map(downloads.digest, files)
        return {
            file.relative_to(folder).as_posix(): digest
            for file, digest in zip(files, digests, strict=True)
        }


def has_image(record: dict) -> bool:
    """Whether the last frame of a record of frames is an image."""
    return clips.decode_image(record["frames"][-1]) is not None


def check_records(folder: Path, is_sound: Callable[[dict], bool] = has_image) -> str:
    """Reads every file of records again; returns a line that all is as it was written.

    Args:
        folder: with the records and their manifest.
        is_sound: whether the content of a record is right; called with the last one of each split.

    Raises:
        UserError: a file is missing, has another content, or cannot be read.
    """
    manifest = read_manifest(folder)
    digests = file_digests(folder)
    for name, digest in manifest["files"].items():
        if digests.get(name) != digest:
            problem = "is missing" if name not in digests else "is not what was written"
            raise UserError(
                f"{folder / name} {problem}; remove {folder} and run --stage=data again to prepare "
                "it anew."
            )
    for split, count in manifest["records"].items():
        records = builder.open_records(folder, split)
        if len(records) != count or not is_sound(records[count - 1]):
            raise UserError(
                f"{folder} has {len(records)} {split} records where its manifest says {count}, or "
                "their content is damaged; remove it and run --stage=data again."
            )
    total = sum(manifest["records"].values())
    return f"{len(digests)} files with {total} records in {folder} are as they were written"


def read_manifest(folder: Path) -> dict:
    """Raises UserError if there is none, or it is damaged."""
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"Could not read {folder / MANIFEST} ({error}); remove {folder} and run --stage=data "
            "again."
        ) from error


def write_manifest(folder: Path, manifest: dict) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


# ---- while records are written -------------------------------------------------------------------


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """One thread for each core: decoding and encoding run outside of Python's lock. An error or
    Ctrl-C drops what is queued.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def replace_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one operation."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


@contextlib.contextmanager
def disk_full_as_sentence(folder: Path) -> Iterator[None]:
    """Turns the error of a full disk into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"No space left in {folder} while writing the records; free some, or name another "
                "folder with --config.data.prepared_dir (what is finished is not lost)."
            ) from error
        raise
