"""The data sets by name: from `config.data` to random-access sources of records, for
data/pipeline.py.

A record is either {"video": uint8 [F', H, W, 3]} (moving shapes) or {"frames": F' image files,
"video": name, ...} (data/builder.py), with F' at least the span of a clip.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import grain

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data import builder, clips, layouts, mirrors, preparation, video_files
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
    """One source of a mixture: its share of the clips, and how many records it has."""

    weight: float
    train: int
    validation: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """Random-access sources of records (`len`, `[i]`), and a hash of all that decides what they
    hold.
    """

    train: Any
    validation: Any
    content_hash: str
    weight: float = 1.0
    parts: tuple[Part, ...] = ()  # of a mixture, whose records come one source after another
    images: "Sources | None" = (
        None  # whose clips have one frame, where those of the others have more
    )


def parts_of(config: Config) -> list[Config]:
    """The config of each source by itself; it says where the records are and what they hold."""
    return [
        dataclasses.replace(
            config,
            data=dataclasses.replace(
                config.data,
                source=part.source,
                mixture=(),
                frames=1 if part.source == "images" else config.data.frames,
                **{"path": "", "source_dir": "", folder_field(part.source): part.path},
            ),
        )
        for part in config.data.parts
    ]


def prepare(config: Config, workdir: Path) -> None:
    """Writes the records of every source unless that is done already; nothing to do for moving
    shapes.

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
        return  # the records are all that training needs; the videos may be gone
    official = OFFICIAL.get(data.source)
    # Only a machine without the archives' content needs it unpacked, and only until the records are
    # written.
    unpacked = folder.with_name(f"{data.source}_unpacked")
    if finished and is_packed(Path(given)):
        return
    videos_folder = find_folder(data, folder.with_name(f"{data.source}_downloaded"), unpacked)
    videos = list_videos(data, videos_folder)
    if finished:
        if preparation.read_manifest(folder)["listing"] == preparation.listing_hash(videos):
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
    """Verifies the prepared records; one line that says that they are as they were written.

    Raises:
        UserError: there are none, or they are damaged.
    """
    return "; ".join(
        "moving shapes are drawn on the fly; there are no records to check"
        if part.data.source == "moving_shapes"
        else preparation.check_records(existing_records(part, workdir))
        for part in parts_of(config)
    )


def existing_records(config: Config, workdir: Path) -> Path:
    """Folder of the records; raises UserError if there are none for these settings."""
    folder = records_folder(config, workdir)
    if not folder.exists():
        raise UserError(
            f"There are no records of {config.data.source} for these settings in {folder.parent}; "
            "run "
            "--stage=data (if it says that it is done already, remove its done.json in "
            f"{workdir / 'data'})."
        )
    return folder


def open_sources(config: Config, workdir: Path, images: bool = False) -> Sources:
    """Opens what `prepare` left; with `images`, also the sources of images beside videos.

    Raises:
        UserError: there are no records of these settings.
    """
    of_videos, of_images = [], []
    for part, found in zip(config.data.parts, parts_of(config)):
        beside = found.data.frames != config.data.frames
        if images or not beside:
            (of_images if beside else of_videos).append(
                dataclasses.replace(open_part(found, workdir), weight=part.weight)
            )
    found = mixed(of_videos)
    if not of_images:
        return found
    beside = mixed(of_images)
    return dataclasses.replace(
        found,
        images=beside,
        content_hash=config_lib.content_hash(found.content_hash, beside.content_hash),
    )


def mixed(several: list[Sources]) -> Sources:
    """The mixture of the sources; one alone stays what it is."""
    if len(several) == 1:
        return several[0]
    train, validation = (
        grain.MapDataset.concatenate(
            [grain.MapDataset.source(getattr(one, split)) for one in several]
        )
        for split in ("train", "validation")
    )
    return Sources(
        train,
        validation,
        config_lib.content_hash([one.content_hash for one in several]),
        weight=sum(one.weight for one in several),
        parts=tuple(Part(one.weight, len(one.train), len(one.validation)) for one in several),
    )


def open_part(config: Config, workdir: Path) -> Sources:
    data = config.data
    if data.source == "moving_shapes":
        frames = clips.span(data.frames, data.frame_stride)
        train = MovingShapes(data.train_clips, frames, data.resolution, data.seed)
        validation = MovingShapes(
            data.validation_clips, frames, data.resolution, data.seed, offset=VALIDATION_OFFSET
        )
        return Sources(train, validation, config_lib.content_hash(train, validation))
    folder = existing_records(config, workdir)
    manifest = preparation.read_manifest(folder)
    train, validation = (
        builder.open_records(folder, name if name in manifest["records"] else "train")
        for name in ("train", "validation")
    )
    return Sources(
        train, validation, config_lib.content_hash(manifest["settings"], manifest["content_hash"])
    )


def records_folder(config: Config, workdir: Path) -> Path:
    """Where the records for these settings are or will be; other settings have another folder."""
    return (
        prepared_folder(config, workdir)
        / f"records_{config_lib.content_hash(_settings(config.data))}"
    )


def prepared_folder(config: Config, workdir: Path) -> Path:
    return Path(config.data.prepared_dir) if config.data.prepared_dir else workdir / "data"


def find_folder(data: DataConfig, downloaded: Path, unpacked: Path) -> Path:
    """The folder that holds the videos: the one given, or where what it holds packed, or what is
    fetched, is unpacked.

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
    """The videos of a data set in the folder `path`, decodable or not.

    Raises:
        UserError: it holds none.
    """
    official = OFFICIAL.get(data.source)
    read = (
        official.read
        if official
        else layouts.images
        if data.source == "images"
        else layouts.any_folder
    )
    videos = read(path)
    if not videos:
        advice = (
            official.missing
            if official
            else "give a folder that holds some, directly or in subfolders"
        )
        files = sum(1 for file in path.rglob("*") if file.is_file())
        raise UserError(
            f"{path} holds no videos ({files or 'no'} files, none of them named as {data.source} "
            "needs it, with "
            "one of "
            f"{', '.join(sorted(video_files.VIDEO_SUFFIXES | video_files.IMAGE_SUFFIXES))}); "
            f"{advice}."
        )
    return videos


def _settings(data: DataConfig) -> builder.RecordSettings:
    return builder.RecordSettings(
        source=data.source, path=str(Path(data.parts[0].path).resolve()) if data.parts[0].path else "",
        resolution=data.resolution, jpeg_quality=data.jpeg_quality,
        record_frames=data.record_frames, span=clips.span(data.frames, data.frame_stride),
        validation_fraction=data.validation_fraction, seed=data.seed,
    )  # fmt: skip
