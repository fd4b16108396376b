"""From videos to records: splits them, works them off in parallel, and leaves record files with
their manifest.

Runs once per data set, in the data stage; data/sources.py opens what it leaves. The work is cut
into parts of some videos each. A part is finished when its small JSON file is there, so a
preparation that was interrupted goes on with the parts that are not.
"""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from mebt_jax.data import builder, clips, downloads, video_files
from mebt_jax.data.builder import RecordFile, RecordSettings, VideoRecords
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError

MANIFEST = "manifest.json"
# Files per split at most: reading keeps all of them open, and systems allow about a thousand.
MAX_PARTS = 256


@dataclasses.dataclass(frozen=True)
class Part:
    """Some videos of one split that are worked off together, into one file of records."""

    name: str
    split: str
    videos: tuple[Video, ...]


def write_records(
    folder: Path,
    videos: Sequence[Video],
    settings: RecordSettings,
    facts: dict[str, Any] | None = None,
    builder_class: type[VideoRecords] = VideoRecords,
) -> dict:
    """Writes the records of `videos` and their manifest to `folder` and returns the manifest.

    Everything goes to a folder beside it that takes the final name when it is whole, so a folder of
    that name is never half written. An older one of that name is replaced. What an earlier call for
    the same files and settings finished is kept.

    Args:
        folder: where the records go.
        videos: of the set; their classes, if any, are numbered in the order of facts["classes"] or
            of their names.
        settings: what to make of them.
        facts: more entries for the manifest.
        builder_class: of the set.

    Raises:
        UserError: no video of a split can be used, or the disk is full.
    """
    facts = {"classes": sorted({video.label for video in videos} - {""}), **(facts or {})}
    listing = listing_hash(videos)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with full_disk_in_one_sentence(folder.parent):
        if (
            not (unfinished / "listing").is_file()
            or (unfinished / "listing").read_text() != listing
        ):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            (unfinished / "listing").write_text(listing)
        splits, how, skipped = split_up(videos, settings, unfinished)
        outcomes = work_off(make_parts(splits), settings, facts["classes"], unfinished / "parts")
        skipped = skipped + [entry for outcome in outcomes for entry in outcome["skipped"]]
        for name in splits:
            if not any(outcome["records"] for outcome in outcomes if outcome["split"] == name):
                raise none_usable(splits[name], f"the {name} split of {settings.path}", skipped)
        files = {
            name: [
                RecordFile(unfinished / "parts" / outcome["file"], outcome["records"])
                for outcome in outcomes
                if outcome["split"] == name and outcome["records"]
            ]
            for name in splits
        }
        finish(unfinished, files, builder.record_features(facts["classes"]), builder_class)
        manifest = {
            "settings": dataclasses.asdict(settings),
            "listing": listing,
            "split": how,
            **facts,
            **summarize(splits, outcomes),
            "skipped": skipped,
            "files": file_digests(unfinished),
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        (folder / "listing").unlink()
        shutil.rmtree(folder / "parts")
    return manifest


@contextlib.contextmanager
def full_disk_in_one_sentence(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"No space left in {folder} while writing the records; free some, or name another "
                "place "
                f"with --config.data.prepared_dir (what is finished is kept there)."
            ) from error
        raise


# ---- splits --------------------------------------------------------------------------------------


def split_up(
    videos: Sequence[Video], settings: RecordSettings, unfinished: Path
) -> tuple[dict[str, list[Video]], str, list[dict[str, str]]]:
    """(videos of each split, how they were split, those that are left out and why).

    The data set's own split is kept if it has videos on both sides; those it does not place go to
    training. Else the videos are decoded once to know which can be used, since the share to hold
    out is a share of those.
    """
    own = {
        "train": [video for video in videos if video.split != "validation"],
        "validation": [video for video in videos if video.split == "validation"],
    }
    if all(own.values()):
        return own, "as the data set gives it", []
    known = unfinished / "checked.json"  # by name: None, or why it cannot be used
    if known.exists():
        reasons = json.loads(known.read_text())
    else:
        reasons = check_videos(videos, settings.span)
        replace_json(known, reasons)
    usable = [video for video in videos if reasons[video.name] is None]
    skipped = [
        {"video": name, "reason": reason} for name, reason in reasons.items() if reason is not None
    ]
    if not usable:
        raise none_usable(videos, settings.path, skipped)
    return *hold_out(usable, settings.validation_fraction, settings.seed), skipped


def hold_out(
    videos: Sequence[Video], fraction: float, seed: int
) -> tuple[dict[str, list[Video]], str]:
    """({"train": [...], "validation": [...]}, how it was split); a video is never in both.

    About `fraction` of the videos, at least one, are held out in an order that follows from the
    seed and their names. A single video can only train.
    """
    if len(videos) == 1:
        return {
            "train": list(videos)
        }, "none: the one video is used for training and for validation"
    order = sorted(
        videos, key=lambda video: hashlib.sha256(f"{seed}/{video.name}".encode()).digest()
    )
    held_out = min(max(1, round(fraction * len(videos))), len(videos) - 1)
    return {
        "train": order[held_out:],
        "validation": order[:held_out],
    }, f"by video, {held_out} of {len(videos)} held out"


def check_videos(videos: Sequence[Video], span: int) -> dict[str, str | None]:
    """By name: None for a video that can be used, else why not. Decodes each of them once to its
    end.
    """

    def check(video: Video) -> str | None:
        try:
            frames = video_files.count_frames(video)
            return builder.too_short(frames, span) if frames < span else None
        except BrokenVideo as error:
            return str(error)

    with threads() as pool:
        found = list(
            tqdm(pool.map(check, videos), total=len(videos), desc="checking videos", unit="video")
        )
    return {video.name: reason for video, reason in zip(videos, found, strict=True)}


def none_usable(
    videos: Sequence[Video], where: str, skipped: Sequence[dict[str, str]]
) -> UserError:
    reasons = "; ".join(
        f"{entry['video']}: {entry['reason']}" for entry in skipped[:3]
    ) + "; ..." * (len(skipped) > 3)
    return UserError(
        f"None of the {len(videos)} videos in {where} can be used ({reasons}); give others, or ask "
        f"for shorter clips with --config.data.frames and --config.data.frame_stride."
    )


def listing_hash(videos: Sequence[Video]) -> str:
    """12 hex digits that change when a file is added, removed or rewritten."""
    digest = hashlib.sha256()
    for video in videos:
        digest.update(f"{video.name}\0{video.split}\0{video.label}\0".encode())
        for file in video.files:
            stat = file.stat() if file.exists() else None
            digest.update(
                f"{file.name}\0{(stat.st_size, stat.st_mtime_ns) if stat else None}\0".encode()
            )
    return digest.hexdigest()[:12]


# ---- the work ------------------------------------------------------------------------------------


def make_parts(splits: dict[str, list[Video]]) -> list[Part]:
    """The same for the same videos on any machine, so that another can go on."""
    parts = []
    for split, videos in splits.items():
        size = math.ceil(len(videos) / MAX_PARTS)
        parts += [
            Part(f"{split}-{i // size:05d}", split, tuple(videos[i : i + size]))
            for i in range(0, len(videos), size)
        ]
    return parts


def work_off(
    parts: Sequence[Part], settings: RecordSettings, classes: Sequence[str], folder: Path
) -> list[dict]:
    """Writes the parts that are not finished, in parallel, and returns what came of each, in
    order.
    """
    folder.mkdir(exist_ok=True)
    features = builder.record_features(classes)
    total = sum(len(part.videos) for part in parts)
    with threads() as pool, tqdm(total=total, desc="writing records", unit="video") as bar:
        stop = threading.Event()

        def advance(videos: int = 1) -> None:
            if stop.is_set():
                raise CancelledError
            bar.update(videos)

        def work(part: Part) -> dict:
            outcome = folder / f"{part.name}.json"
            if outcome.exists():
                advance(len(part.videos))
            else:
                replace_json(
                    outcome,
                    write_part(part, settings, features, classes, folder / part.name, advance),
                )
            return json.loads(outcome.read_text())

        try:
            return list(pool.map(work, parts))
        finally:  # after an error or Ctrl-C the others stop at their next video
            stop.set()


def write_part(
    part: Part,
    settings: RecordSettings,
    features: tfds.features.FeaturesDict,
    classes: Sequence[str],
    path: Path,
    progress: Callable[[], Any],
) -> dict:
    """Writes one file of records; what came of its videos, fit for JSON."""
    outcome: dict[str, Any] = {
        "file": part.name,
        "split": part.split,
        "records": 0,
        "videos": [],
        "skipped": [],
    }
    content = hashlib.sha256()
    writer = ArrayRecordWriter(str(path), builder.WRITER_OPTIONS)
    try:
        for video in part.videos:
            try:
                label = list(classes).index(video.label) if video.label else -1
                frames, records = builder.video_records(video, settings, label, path.parent)
                for record in records:
                    writer.write(features.serialize_example(record))
                    content.update(
                        f"{video.name}\0{record['start']}\0{label}\0".encode()
                        + b"".join(record["frames"])
                    )
                    outcome["records"] += 1
                height, width = video_files.frame_size(video)
                outcome["videos"].append(
                    {
                        "video": video.name,
                        "frames": frames,
                        "size": f"{width}x{height}",
                        "frames_per_second": round(video_files.frames_per_second(video), 3),
                    }
                )
            except BrokenVideo as error:
                outcome["skipped"].append({"video": video.name, "reason": str(error)})
            progress()
    finally:
        writer.close()
    return outcome | {"content": content.hexdigest()}


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """One for each core: decoding and encoding run outside of Python's lock. An error or Ctrl-C
    drops what is queued.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def replace_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


# ---- the result ----------------------------------------------------------------------------------


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
    with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads, and there are none
        builder_class(str(folder), features, files).download_and_prepare()


def summarize(splits: Iterable[str], outcomes: Sequence[dict]) -> dict[str, Any]:
    """What the manifest tells of the videos that were used."""
    used = {
        name: [
            video for outcome in outcomes if outcome["split"] == name for video in outcome["videos"]
        ]
        for name in splits
    }
    every = [video for videos in used.values() for video in videos]
    counted = collections.Counter
    return {
        "content_hash": hashlib.sha256(
            "".join(outcome["content"] for outcome in outcomes).encode()
        ).hexdigest()[:16],
        "records": {
            name: sum(outcome["records"] for outcome in outcomes if outcome["split"] == name)
            for name in used
        },
        "videos": {name: len(videos) for name, videos in used.items()},
        "frames": {name: sum(video["frames"] for video in videos) for name, videos in used.items()},
        "hours": {
            name: round(
                sum(
                    video["frames"] / video["frames_per_second"]
                    for video in videos
                    if video["frames_per_second"]
                )
                / 3600,
                4,
            )
            for name, videos in used.items()
        },
        "sizes": dict(counted(video["size"] for video in every).most_common()),
        "frame_rates": dict(
            counted(str(video["frames_per_second"] or "unknown") for video in every).most_common()
        ),
        "used": {
            name: {video["video"]: video["frames"] for video in videos}
            for name, videos in used.items()
        },
    }


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of records, by its path in the folder."""
    files = sorted(folder.glob("*_records/*/*.array_record-*"))
    with threads() as pool:
        found = pool.map(downloads.digest, files)
        return {
            file.relative_to(folder).as_posix(): digest
            for file, digest in zip(files, found, strict=True)
        }


def check_records(
    folder: Path,
    sound: Callable[[dict], bool] = lambda record: (
        clips.decode_image(record["frames"][-1]) is not None
    ),
) -> str:
    """Reads every file of records again and says in one line that all is as it was written.

    Args:
        folder: with the records and their manifest.
        sound: whether a record holds what it should; asked of the last one of each split.

    Raises:
        UserError: a file is missing, is not what was written, or cannot be read.
    """
    manifest = read_manifest(folder)
    found = file_digests(folder)
    for name, digest in manifest["files"].items():
        if found.get(name) != digest:
            problem = "is missing" if name not in found else "is not what was written"
            raise UserError(
                f"{folder / name} {problem}; remove {folder} and run --stage=data again to prepare "
                "it anew."
            )
    for split, number in manifest["records"].items():
        records = builder.open_records(folder, split)
        if len(records) != number or not sound(records[number - 1]):
            raise UserError(
                f"{folder} has {len(records)} {split} records where its manifest says {number}, or "
                "they do not hold "
                f"what they should; remove it and run --stage=data again."
            )
    return f"{len(found)} files with {sum(manifest['records'].values())} records in {folder} are as they were written"


def read_manifest(folder: Path) -> dict:
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"Could not read {folder / MANIFEST} ({error}); remove {folder} and run --stage=data "
            "again."
        ) from error
