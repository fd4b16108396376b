"""Stage 1: makes the data ready to train on, and shows it.

Videos on disk become records (data/builder.py); moving shapes are drawn on the fly and need
nothing. Either way the stage leaves `<workdir>/data/manifest.json` and `preview.png`, and fails
here, not in training, when the data cannot be used.
"""

import dataclasses
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from mebt_jax.config import Config
from mebt_jax.data import pipeline, record_folders, sources, token_cache
from mebt_jax.runtime import pictures, telemetry
from mebt_jax.runtime import workdir as workdir_lib

STAGE = "data"
PREVIEW_CLIPS = 8


def run(config: Config, workdir: Path) -> None:
    """Prepares the data, writes the manifest and a preview of training clips, and says what there
    is.

    The first process does it all; the others wait, and find the records where it left them.

    Raises:
        UserError: the videos are missing, or none of them can be used.
    """
    if jax.process_index() == 0:
        prepare_and_show(config, workdir)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the data stage is done")


def prepare_and_show(config: Config, workdir: Path) -> None:
    sources.prepare(config, workdir)
    opened = sources.open_sources(config, workdir, images=True)

    batches = pipeline.train_batches(opened, config, PREVIEW_CLIPS)
    shown = [next(batches)["video"]]
    if opened.images:
        shown.append(next(batch["video"] for batch in batches if batch["video"].shape[1] == 1))
    rows = [
        (f"train {kind} {i}", video)
        for kind, videos in zip(("clip", "image"), shown)
        for i, video in enumerate(videos)
    ]
    pictures.contact_sheet(workdir / STAGE / "preview.png", rows)

    manifests = [manifest_of(part, workdir) for part in sources.parts_of(config)]
    for part, manifest in zip(config.data.mixture, manifests):
        manifest["weight"] = part.weight
    workdir_lib.write_json(
        workdir / STAGE / "manifest.json",
        {"mixture": manifests, "classes": opened.classes} if config.data.mixture else manifests[0],
    )
    workdir_lib.mark_done(config, workdir, STAGE, content=opened.content_hash)


def manifest_of(config: Config, workdir: Path) -> dict:
    """The manifest of one source, after a line about it."""
    data = config.data
    if data.source == "moving_shapes":
        telemetry.say(
            f"{STAGE}: {data.train_clips} clips of moving shapes to train on, "
            f"{data.validation_clips} held out"
        )
        return {"settings": dataclasses.asdict(data)}
    folder = sources.records_folder(config, workdir)
    manifest = {"records_folder": str(folder), **record_folders.read_manifest(folder)}
    telemetry.say(
        f"{STAGE}: {data.source}: {summary(manifest)}; all listed in "
        f"{workdir / STAGE / 'manifest.json'}"
    )
    return manifest


def check(config: Config, workdir: Path) -> None:
    """Reads the prepared records again, and the tokens made of them, and says that they are as they
    were written.

    Raises:
        UserError: there are no records, or they or the tokens are damaged; names the first file
            that is.
    """
    telemetry.say(f"{STAGE}: {sources.check(config, workdir)}")
    for line in token_cache.check(config, workdir, sources.open_sources(config, workdir)):
        telemetry.say(f"{STAGE}: {line}")


def summary(manifest: dict) -> str:
    """One line about the records: videos, frames, hours, split, what was published, what was
    skipped and the first reason.
    """
    videos, frames, records, hours = (
        sum(manifest[name].values()) for name in ("videos", "frames", "records", "hours")
    )
    line = (
        f"{videos} videos, {frames} frames, {hours:.2f} hours in {records} records; "
        f"split {manifest['split']}"
    )
    missing = {
        name: count - manifest["videos"][name]
        for name, count in manifest.get("published_videos", {}).items()
    }
    if any(n > 0 for n in missing.values()):
        counts = ", ".join(f"{n} {name}" for name, n in missing.items() if n > 0)
        line += f"; {counts} videos of the published set are not among them"
    skipped = manifest["skipped"]
    if not skipped:
        return f"{line}; none skipped"
    return f"{line}; {len(skipped)} skipped (first: {skipped[0]['video']}, {skipped[0]['reason']})"
