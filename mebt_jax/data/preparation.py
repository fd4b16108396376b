"""From videos to records: splits the videos, writes their records in parallel, and leaves record
files with their manifest.

Runs once per data set, in the data stage; data/sources.py opens the result. The work is cut into
parts of some videos each. A part is finished when its small JSON file is there, so an interrupted
preparation goes on with the other parts.
"""

import collections
import dataclasses
import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from mebt_jax.data import builder, conditions, record_folders, splits, video_files
from mebt_jax.data.builder import RecordFile, RecordSettings, VideoRecords
from mebt_jax.data.record_folders import MAX_FILES, replace_json
from mebt_jax.data.video_files import BrokenVideo, Video


@dataclasses.dataclass(frozen=True)
class Part:
    """Some videos of one split whose records go into one file."""

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

    Everything is written to a folder beside it, which gets the final name when it is complete, so a
    folder of that name is never half written. An older one of that name is replaced. Finished parts
    of an interrupted call for the same files and settings are used again.

    Args:
        folder: where the records go.
        videos: of the set. Their classes, if any, are numbered in the order of facts["classes"], or
            else in that of their names.
        settings: what the records hold.
        facts: more entries for the manifest.
        builder_class: of the set.

    Raises:
        UserError: no video of a split can be used, or the disk is full.
    """
    facts = {"classes": sorted({video.label for video in videos} - {""}), **(facts or {})}
    listing = listing_hash(videos)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with record_folders.disk_full_as_sentence(folder.parent):
        noted = unfinished / "listing"
        if not noted.is_file() or noted.read_text() != listing:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            noted.write_text(listing)
        by_split, description, skipped = splits.split_videos(videos, settings, unfinished)
        parts_folder = unfinished / "parts"
        outcomes = write_parts(make_parts(by_split), settings, facts["classes"], parts_folder)
        skipped = skipped + [entry for outcome in outcomes for entry in outcome["skipped"]]
        for name in by_split:
            if not any(outcome["records"] for outcome in outcomes if outcome["split"] == name):
                where = f"the {name} split of {settings.path}"
                raise splits.none_usable(by_split[name], where, skipped)
        files = {
            name: [
                RecordFile(parts_folder / outcome["file"], outcome["records"])
                for outcome in outcomes
                if outcome["split"] == name and outcome["records"]
            ]
            for name in by_split
        }
        record_folders.finish(
            unfinished, files, builder.record_features(facts["classes"]), builder_class
        )
        manifest = {
            "settings": dataclasses.asdict(settings),
            "listing": listing,
            "split": description,
            **facts,
            **summarize(by_split, outcomes),
            "skipped": skipped,
            "files": record_folders.file_digests(unfinished),
        }
        record_folders.write_manifest(unfinished, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        (folder / "listing").unlink()
        shutil.rmtree(folder / "parts")
    return manifest


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


def make_parts(by_split: dict[str, list[Video]]) -> list[Part]:
    """The same parts for the same videos on any machine, so that another machine can go on."""
    parts = []
    for split, videos in by_split.items():
        size = math.ceil(len(videos) / MAX_FILES)
        parts += [
            Part(f"{split}-{i // size:05d}", split, tuple(videos[i : i + size]))
            for i in range(0, len(videos), size)
        ]
    return parts


def write_parts(
    parts: Sequence[Part], settings: RecordSettings, classes: Sequence[str], folder: Path
) -> list[dict]:
    """Writes the parts that are not finished, in parallel; the outcome of each part, in order."""
    folder.mkdir(exist_ok=True)
    features = builder.record_features(classes)
    total = sum(len(part.videos) for part in parts)
    with (
        record_folders.threads() as pool,
        tqdm(total=total, desc="writing records", unit="video") as bar,
    ):
        stop = threading.Event()

        def advance(videos: int = 1) -> None:
            if stop.is_set():
                raise CancelledError
            bar.update(videos)

        def finished(part: Part) -> dict:
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
            return list(pool.map(finished, parts))
        finally:  # after an error or Ctrl-C the other threads stop at their next video
            stop.set()


def write_part(
    part: Part,
    settings: RecordSettings,
    features: tfds.features.FeaturesDict,
    classes: Sequence[str],
    path: Path,
    on_video: Callable[[], Any],
) -> dict:
    """Writes one file of records; its outcome, as plain JSON: its count of records, the videos in
    it, those that were skipped, and a hash of its content.
    """
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
                label = list(classes).index(video.label) if video.label else conditions.NO_LABEL
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
            on_video()
    finally:
        writer.close()
    return outcome | {"content": content.hexdigest()}


def summarize(names: Iterable[str], outcomes: Sequence[dict]) -> dict[str, Any]:
    """The entries of the manifest about the videos of the splits `names` that were used."""
    used = {
        name: [
            video for outcome in outcomes if outcome["split"] == name for video in outcome["videos"]
        ]
        for name in names
    }
    every = [video for videos in used.values() for video in videos]
    sizes = collections.Counter(video["size"] for video in every)
    rates = collections.Counter(str(video["frames_per_second"] or "unknown") for video in every)
    content = "".join(outcome["content"] for outcome in outcomes)
    return {
        "content_hash": hashlib.sha256(content.encode()).hexdigest()[:16],
        "records": {
            name: sum(outcome["records"] for outcome in outcomes if outcome["split"] == name)
            for name in used
        },
        "videos": {name: len(videos) for name, videos in used.items()},
        "frames": {name: sum(video["frames"] for video in videos) for name, videos in used.items()},
        "hours": {name: round(hours(videos), 4) for name, videos in used.items()},
        "sizes": dict(sizes.most_common()),
        "frame_rates": dict(rates.most_common()),
        "used": {
            name: {video["video"]: video["frames"] for video in videos}
            for name, videos in used.items()
        },
    }


def hours(videos: Sequence[dict]) -> float:
    """Total length of the videos whose frame rate is known."""
    known = [video for video in videos if video["frames_per_second"]]
    return sum(video["frames"] / video["frames_per_second"] for video in known) / 3600
