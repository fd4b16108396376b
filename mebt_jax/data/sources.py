"""The data sets by name: from `config.data` to random-access sources of records, for
data/pipeline.py.

A record is either {"video": uint8 [F', H, W, 3]} (moving shapes) or {"frames": F' image files,
"video": name, ...} (data/builder.py), with F' at least the span of a clip. Either may have
conditions besides (data/conditions.py).
"""

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data import (
    builder,
    clips,
    conditions,
    layouts,
    mirrors,
    preparation,
    record_folders,
    video_files,
)
from mebt_jax.data.data_config import DataConfig, folder_field
from mebt_jax.data.published_sets import OFFICIAL
from mebt_jax.data.video_files import Video
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.errors import UserError
from mebt_jax.runtime import telemetry

# Far beyond any number of training clips: the validation clips stay the same when that number
# changes.
VALIDATION_OFFSET = 2**32


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a mixture: its weight among the clips, and its number of records."""

    weight: float
    train: int
    validation: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """Random-access sources of records (`len`, `[i]`), with a hash of their content."""

    train: Any
    validation: Any
    content_hash: str
    weight: float = 1.0
    # Names of the classes, in the order of the labels; empty if the records have no labels. In a
    # mixture they are "<source>/<class>".
    classes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()  # of a mixture, whose records come one source after another
    # Sources of images beside videos; their clips have one frame.
    images: "Sources | None" = None


# ---- preparing -----------------------------------------------------------------------------------


def parts_of(config: Config) -> list[Config]:
    """The config of each source by itself, from which the folder and the content of its records
    follow.
    """
    parts = []
    for part in config.data.parts:
        data = dataclasses.replace(
            config.data,
            source=part.source,
            mixture=(),
            frames=1 if part.source == "images" else config.data.frames,
            path="",
            source_dir="",
        )
        if field := folder_field(part.source):
            data = dataclasses.replace(data, **{field: part.path})
        parts.append(dataclasses.replace(config, data=data))
    return parts


def prepare(config: Config, workdir: Path) -> None:
    """Writes the records of every source that has none yet. Moving shapes need no records.

    Raises:
        UserError: the videos are missing, or none of them can be used.
    """
    for part in parts_of(config):
        prepare_part(part, workdir)


def prepare_part(config: Config, workdir: Path) -> None:
    data = config.data
    if data.source == "moving_shapes":
        return
    folder = records_folder(config, workdir)
    finished = folder.exists()
    given = data.parts[0].path
    if finished and not (given and Path(given).is_dir()):
        return  # training needs the records alone; the videos may be gone
    if finished and is_packed(Path(given)):
        return
    official = OFFICIAL.get(data.source)
    # Archives are unpacked here, until the records are written.
    unpacked = folder.with_name(f"{data.source}_unpacked")
    videos_folder = find_folder(data, folder.with_name(f"{data.source}_downloaded"), unpacked)
    videos = list_videos(data, videos_folder)
    if finished:
        if record_folders.read_manifest(folder)["listing"] == preparation.listing_hash(videos):
            return
        telemetry.say(
            f"The files in {given} changed since {folder} was written; preparing them anew."
        )
    facts = {}
    if official:
        facts = {
            "homepage": official.builder.homepage,
            "real_split": official.real_split,
            "published_videos": official.published,
            "classes": official.classes(videos_folder)
            or sorted({video.label for video in videos} - {""}),
        }
    preparation.write_records(
        folder,
        videos,
        _settings(data),
        facts,
        official.builder if official else builder.VideoRecords,
    )
    shutil.rmtree(unpacked, ignore_errors=True)


def check(config: Config, workdir: Path) -> str:
    """Verifies the prepared records; returns a line that they are as they were written.

    Raises:
        UserError: there are none, or they are damaged.
    """
    return "; ".join(
        "moving shapes are drawn on the fly; there are no records to check"
        if part.data.source == "moving_shapes"
        else record_folders.check_records(existing_records(part, workdir))
        for part in parts_of(config)
    )


def existing_records(config: Config, workdir: Path) -> Path:
    """Folder of the records of one source; raises UserError if there are none for these
    settings.
    """
    folder = records_folder(config, workdir)
    if not folder.exists():
        raise UserError(
            f"There are no records of {config.data.source} for these settings in {folder.parent}; "
            "run --stage=data (if it says that it is done already, remove its done.json in "
            f"{workdir / 'data'})."
        )
    return folder


def records_folder(config: Config, workdir: Path) -> Path:
    """Where the records for these settings are or will be; each set of settings has a folder."""
    settings = config_lib.content_hash(_settings(config.data))
    return prepared_folder(config, workdir) / f"records_{settings}"


def prepared_folder(config: Config, workdir: Path) -> Path:
    return Path(config.data.prepared_dir) if config.data.prepared_dir else workdir / "data"


def _settings(data: DataConfig) -> builder.RecordSettings:
    path = data.parts[0].path
    return builder.RecordSettings(
        source=data.source,
        path=str(Path(path).resolve()) if path else "",
        resolution=data.resolution,
        jpeg_quality=data.jpeg_quality,
        record_frames=data.record_frames,
        span=clips.span(data.frames, data.frame_stride),
        validation_fraction=data.validation_fraction,
        seed=data.seed,
    )


# ---- opening -------------------------------------------------------------------------------------


def open_sources(config: Config, workdir: Path, images: bool = False) -> Sources:
    """Opens the records that `prepare` wrote; with `images`, also those of images beside videos.

    Raises:
        UserError: there are no records of these settings.
    """
    videos = mixed(open_video_parts(config, workdir))
    image_parts = [part for part in _weighted_parts(config) if _is_beside(part[1], config)]
    if not images or not image_parts:
        return videos
    beside = mixed(_open_parts(image_parts, workdir))
    return dataclasses.replace(
        videos,
        images=beside,
        content_hash=config_lib.content_hash(videos.content_hash, beside.content_hash),
    )


def video_parts(config: Config) -> list[tuple[float, Config]]:
    """(weight, config) of each source whose clips are as long as the run's, so not of images
    beside videos.
    """
    return [part for part in _weighted_parts(config) if not _is_beside(part[1], config)]


def open_video_parts(config: Config, workdir: Path) -> list[Sources]:
    """Opens each of `video_parts` by itself.

    Their labels number the classes of all of them: those of the first source, then those of the
    second, and so on. Unless every source has classes, no record has a label.

    Raises:
        UserError: there are no records of these settings.
    """
    return _open_parts(video_parts(config), workdir)


def mixed(several: list[Sources]) -> Sources:
    """The mixture of the sources; a single one is returned as it is."""
    if len(several) == 1:
        return several[0]
    train, validation = (
        grain.MapDataset.concatenate(
            [grain.MapDataset.source(getattr(source, split)) for source in several]
        )
        for split in ("train", "validation")
    )
    return Sources(
        train,
        validation,
        config_lib.content_hash([source.content_hash for source in several]),
        weight=sum(source.weight for source in several),
        classes=tuple(name for source in several for name in source.classes),
        parts=tuple(
            Part(source.weight, len(source.train), len(source.validation)) for source in several
        ),
    )


def open_part(config: Config, workdir: Path) -> Sources:
    """Opens a source that is not a mixture."""
    data = config.data
    if data.source == "moving_shapes":
        frames = clips.span(data.frames, data.frame_stride)
        train = MovingShapes(data.train_clips, frames, data.resolution, data.seed)
        validation = MovingShapes(
            data.validation_clips, frames, data.resolution, data.seed, offset=VALIDATION_OFFSET
        )
        return Sources(train, validation, config_lib.content_hash(train, validation))
    folder = existing_records(config, workdir)
    manifest = record_folders.read_manifest(folder)
    train, validation = (
        builder.open_records(folder, name if name in manifest["records"] else "train")
        for name in ("train", "validation")
    )
    opened = Sources(
        train,
        validation,
        config_lib.content_hash(manifest["settings"], manifest["content_hash"]),
        classes=tuple(manifest["classes"]),
    )
    # The records of a set without classes have labels too, all of them NO_LABEL.
    return opened if opened.classes else _relabelled(opened, first=None, classes=())


def _open_parts(parts: Sequence[tuple[float, Config]], workdir: Path) -> list[Sources]:
    opened = [
        dataclasses.replace(open_part(config, workdir), weight=weight) for weight, config in parts
    ]
    if len(opened) == 1:
        return opened
    if not all(source.classes for source in opened):
        return [
            _relabelled(source, first=None, classes=()) if source.classes else source
            for source in opened
        ]
    firsts = itertools.accumulate((len(source.classes) for source in opened), initial=0)
    return [
        _relabelled(source, first, tuple(f"{config.data.source}/{name}" for name in source.classes))
        for source, first, (_, config) in zip(opened, firsts, parts)
    ]


def _relabelled(source: Sources, first: int | None, classes: tuple[str, ...]) -> Sources:
    train, validation = (
        conditions.Labelled(records, first) for records in (source.train, source.validation)
    )
    return dataclasses.replace(source, train=train, validation=validation, classes=classes)


def _weighted_parts(config: Config) -> list[tuple[float, Config]]:
    weights = [part.weight for part in config.data.parts]
    return list(zip(weights, parts_of(config), strict=True))


def _is_beside(part: Config, config: Config) -> bool:
    """Whether the source `part` of `config` is one of images beside videos."""
    return part.data.frames != config.data.frames


# ---- videos on disk ------------------------------------------------------------------------------


def find_folder(data: DataConfig, downloaded: Path, unpacked: Path) -> Path:
    """The folder with the videos of a source: that of the config; or, if its files are packed,
    `unpacked`. Archives that can be fetched are fetched into `downloaded` if the config names no
    folder.

    Raises:
        UserError: there is no folder and nothing that can be fetched.
    """
    official = OFFICIAL.get(data.source)
    advice = (
        official.missing
        if official
        else "pass --config.data.path=DIR with a folder of videos or of folders of frames"
    )
    given = data.parts[0].path
    path = Path(given)
    if not given and official and official.archives:
        for archive in official.archives:
            mirrors.fetch(archive, downloaded, by_hand=advice)
        path = downloaded
    elif not given or not path.is_dir():
        problem = f"{given!r} is not a folder" if given else "is empty"
        raise UserError(f"config.data.{folder_field(data.source)} {problem}; {advice}.")
    if not is_packed(path):
        return path
    for archive in mirrors.find_archives(path):
        mirrors.unpack(archive, unpacked)
    return unpacked


def is_packed(path: Path) -> bool:
    """True if a folder holds archives directly, and no video at any depth."""
    return bool(mirrors.find_archives(path)) and not video_files.find_videos(path)


def list_videos(data: DataConfig, path: Path) -> list[Video]:
    """The videos of a source in the folder `path`, decodable or not.

    Raises:
        UserError: it holds none.
    """
    official = OFFICIAL.get(data.source)
    if official:
        read, advice = official.read, official.missing
    else:
        read = layouts.images if data.source == "images" else layouts.any_folder
        advice = "give a folder that holds some, directly or in subfolders"
    videos = read(path)
    if not videos:
        files = sum(1 for file in path.rglob("*") if file.is_file())
        suffixes = ", ".join(sorted(video_files.VIDEO_SUFFIXES | video_files.IMAGE_SUFFIXES))
        raise UserError(
            f"{path} holds no videos ({files or 'no'} files, none of them named as {data.source} "
            f"needs it, with one of {suffixes}); {advice}."
        )
    return videos
