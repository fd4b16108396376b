"""Evaluates any folder of videos against another: no model and no earlier stage needed. Part of the
evaluate stage.

python -m mebt_jax.main --config=configs/ucf16.py --stage=evaluate --config.evaluate.real=DIR
--config.evaluate.fake=DIR
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from mebt_jax.config import Config
from mebt_jax.data import clips, measured_clips, preparation, video_files
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError
from mebt_jax.metrics import protocols, report, results
from mebt_jax.metrics.distances import neighbours
from mebt_jax.metrics.networks import extraction
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import pictures, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages.evaluation import feature_networks
from mebt_jax.stages.evaluation.evaluated_clips import Networks

FOLDER = (
    "compare"  # below the work directory, beside the stages: the numbers of a run stay as they are
)
PICTURED_CLIPS = 8
RATE_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class ClipRule:
    """How one clip is made of each video."""

    frames: int
    stride: int
    size: tuple[int, int]  # (height, width) that every video must have; (0, 0): any
    side: int  # pixels of the square that its frames are brought to
    start: str  # "first" or "random", which follows from the name of the video


@dataclasses.dataclass(frozen=True)
class Side:
    """The clips of one folder."""

    videos: list[Video]  # those used, in the order of the rows
    features: dict[str, np.ndarray]  # by network: [n, D] or [n, windows, D]
    skipped: list[dict[str, str]]  # {"video", "reason"}


def wanted(config: Config) -> bool:
    """Whether the config names two folders to compare."""
    return bool(config.evaluate.real or config.evaluate.fake)


def run(config: Config, workdir: Path) -> None:
    """Writes metrics.json, report.html and contact_sheet.png below `<workdir>/compare`, and prints
    the table.

    Raises:
        UserError: a folder is missing or empty, the two differ in size or frame rate, too few
            clips, no weights.
    """
    # ---- folders and protocol --------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch_size(mesh, config.evaluate.batch_size, "config.evaluate.batch_size")
    real_videos, fake_videos = (
        find(getattr(config.evaluate, name), name) for name in ("real", "fake")
    )
    protocol = protocols.for_data(
        config.evaluate.protocol, "validation", config.data.frames
    )  # a folder is of no split
    protocols.check_counts(protocol, real=len(real_videos), fake=len(fake_videos))
    networks = feature_networks.load(protocol, config)
    rule = ClipRule(
        config.data.frames,
        config.data.frame_stride,
        *common_size(real_videos, fake_videos, config),
        "random",
    )
    form = ClipForm(rule.frames, rule.side, rule.stride)
    if not config.evaluate.any_frame_rate:
        check_frame_rates(real_videos, fake_videos)

    # ---- features --------------------------------------------------------------------------------
    folder = workdir / FOLDER / "features"
    real = read_side(
        real_videos,
        rule,
        2 * protocol.clips,
        feature_networks.for_reals(networks, protocol, config),
        config,
        mesh,
        folder,
        "real clips",
    )
    generated_rule = dataclasses.replace(rule, start="first")
    fake = read_side(
        fake_videos,
        generated_rule,
        protocol.clips * protocol.repeats,
        feature_networks.with_windows(networks, config),
        config,
        mesh,
        folder,
        "generated clips",
    )
    protocols.check_counts(protocol, real=len(real.videos), fake=len(fake.videos))
    check_enough(real, fake, config)

    # ---- numbers and page ------------------------------------------------------------------------
    reals = (
        f"{config.evaluate.real}, one clip per video at a random start, stored as "
        f"{stored_as(real)}; generated clips stored "
        f"as {stored_as(fake)}"
    )
    count = protocol.clips or min(len(fake.videos), len(real.videos))
    found = numbers(protocol, fake, real, count, form, reals)
    if jax.process_index() == 0:
        window, every = config.evaluate.window, config.evaluate.window_every
        firsts = real.features.get("windows")  # [n, 1, D]
        curve = results.window_curve(
            protocol,
            fake.features.get("windows"),
            firsts,
            firsts[count:] if firsts is not None else None,
            extraction.windows(form.frames, window, every),
            dataclasses.replace(form, frames=window),
            reals,
        )
        skipped = {"skipped": {"real": real.skipped, "generated": fake.skipped}}
        workdir_lib.write_json(
            workdir / FOLDER / "metrics.json", results.to_json(found) | curve | skipped
        )
        show(config, workdir / FOLDER, found, fake, real, generated_rule, rule, curve)


def find(folder: str, name: str) -> list[Video]:
    """The videos of a folder, in an order that follows from their names and mixes its
    subfolders.
    """
    if not folder or not Path(folder).is_dir():
        problem = (
            f"config.evaluate.{name} {folder!r} is not a folder"
            if folder
            else f"config.evaluate.{name} is empty"
        )
        raise UserError(
            f"{problem}; to compare folders give both --config.evaluate.real=DIR and "
            "--config.evaluate.fake=DIR."
        )
    videos = video_files.find_videos(Path(folder))
    if not videos:
        raise UserError(
            f"{folder} holds no videos, directly or in subfolders; config.evaluate.{name} must be "
            "a folder of "
            f"video files or of folders of frames."
        )
    return sorted(videos, key=lambda video: measured_clips.order_key(video.name))


def common_size(
    real: list[Video], fake: list[Video], config: Config
) -> tuple[tuple[int, int], int]:
    """((height, width) that every video must have, side of the squares to compare)."""
    if config.evaluate.resolution:
        return (0, 0), config.evaluate.resolution
    sizes = {}
    for name, videos in (("real", real), ("generated", fake)):
        try:
            sizes[name] = video_files.frame_size(videos[0])
        except BrokenVideo as error:
            raise UserError(f"The {name} video {videos[0].name} {error}; remove it.") from error
    (height, width), other = sizes["real"], sizes["generated"]
    if (height, width) != other:
        raise UserError(
            f"Real clips are {height}x{width} and generated ones {other[0]}x{other[1]}, and a "
            "resize would count "
            "as a difference; give clips of one size, or bring both to one with "
            "--config.evaluate.resolution="
            f"{min(height, width, *other)}."
        )
    return (height, width), min(height, width)


def check_frame_rates(real: list[Video], fake: list[Video]) -> None:
    """Raises UserError if both sides tell their frame rate and it is not the same."""
    rates = []
    for videos in (real, fake):
        known = [rate for video in videos[:16] if (rate := video_files.frames_per_second(video))]
        rates.append(float(np.median(known)) if known else 0.0)
    if all(rates) and abs(rates[0] - rates[1]) > RATE_TOLERANCE * rates[0]:
        raise UserError(
            f"Real clips run at {rates[0]:g} frames per second and generated ones at {rates[1]:g}, "
            "so the same "
            "motion differs; give clips of one rate, or pass "
            "--config.evaluate.any_frame_rate=True if the files "
            f"only say so."
        )


def check_enough(real: Side, fake: Side, config: Config) -> None:
    for name, side in (("real", real), ("generated", fake)):
        if len(side.videos) < 2:
            reasons = "; ".join(
                f"{entry['video']}: {entry['reason']}" for entry in side.skipped[:3]
            )
            raise UserError(
                f"Only {len(side.videos)} of the {name} videos can be used and a distance needs 2 "
                f"({reasons}); "
                "give more, or ask for shorter clips with --config.data.frames (now "
                f"{config.data.frames})."
            )


# ---- clips ---------------------------------------------------------------------------------------


def read_clip(video: Video, rule: ClipRule) -> np.ndarray:
    """The clip of one video: uint8 [F, side, side, 3].

    Raises:
        BrokenVideo: it is damaged, too short, or of another size.
    """
    if rule.size != (0, 0) and (size := video_files.frame_size(video)) != rule.size:
        raise BrokenVideo(f"is {size[0]}x{size[1]}, the others {rule.size[0]}x{rule.size[1]}")
    reach = clips.span(rule.frames, rule.stride)
    start = 0
    if rule.start == "random":
        spare = video_files.count_frames(video) - reach
        start = measured_clips.start_of(video.name, spare + 1) if spare > 0 else 0
    frames = list(
        itertools.islice(
            video_files.read_frames(video, rule.side), start, start + reach, rule.stride
        )
    )
    if len(frames) < rule.frames:
        raise BrokenVideo(f"is too short for {rule.frames} frames at stride {rule.stride}")
    return np.stack(frames)


def read_side(
    videos: list[Video],
    rule: ClipRule,
    limit: int,
    networks: Networks,
    config: Config,
    mesh: Mesh,
    folder: Path,
    what: str,
) -> Side:
    """Features of at most `limit` clips (0: all), one per video; those that cannot be used are
    skipped and listed.
    """
    size = config.evaluate.batch_size
    used: list[str] = []
    skipped: list[dict[str, str]] = []

    def attempt(video: Video) -> np.ndarray | BrokenVideo:
        try:
            return read_clip(video, rule)
        except BrokenVideo as error:
            return error

    def read() -> Iterator[np.ndarray]:
        with (
            ThreadPoolExecutor() as threads,
            tqdm(
                total=len(videos),
                desc=f"evaluate: {what}",
                unit="clip",
                disable=jax.process_index() != 0,
                mininterval=2,
            ) as bar,
        ):
            for start in range(0, len(videos), size):
                part = videos[start : start + size]
                for video, clip in zip(part, threads.map(attempt, part)):
                    bar.update()
                    if limit and len(used) == limit:
                        return
                    if isinstance(clip, BrokenVideo):
                        skipped.append({"video": video.name, "reason": str(clip)})
                        continue
                    used.append(video.name)
                    yield clip

    def compute() -> dict[str, np.ndarray]:
        found = extraction.extract(list(networks.values()), read(), size, mesh)
        return dict(zip(networks, found)) | {
            "used": np.array(used),
            "skipped": np.array(json.dumps(skipped)),
        }

    keys = [
        preparation.listing_hash(videos),
        str(Path(videos[0].files[0]).parent),
        dataclasses.asdict(rule),
        limit,
        [network.name for network in networks.values()],
    ]
    arrays = extraction.cached(folder, keys, compute)
    skipped = json.loads(str(arrays.pop("skipped")))
    by_name = {video.name: video for video in videos}
    used_videos = [by_name[name] for name in arrays.pop("used").tolist()]
    if skipped:
        telemetry.say(
            f"evaluate: {len(skipped)} of {len(videos)} {what} left out, first "
            f"{skipped[0]['video']}: "
            f"{skipped[0]['reason']}; metrics.json lists them"
        )
    return Side(used_videos, arrays, skipped)


# ---- numbers and page ----------------------------------------------------------------------------


def stored_as(side: Side) -> str:
    """Suffixes of the files, since what one side lost to compression and the other did not counts
    as a difference.
    """
    return ", ".join(sorted({video.files[0].suffix.lower().lstrip(".") for video in side.videos}))


def numbers(
    protocol: Protocol, fake: Side, real: Side, count: int, form: ClipForm, reals: str
) -> dict[str, results.Result]:
    rows = real.features["frechet"]
    found = results.distances(
        protocol, fake.features["frechet"], rows, rows[count:], form, "generated", reals
    )
    if "inception" in real.features:
        found |= results.inception(fake.features["inception"], real.features["inception"])
    return found


def show(
    config: Config,
    directory: Path,
    found: dict[str, results.Result],
    fake: Side,
    real: Side,
    fake_rule: ClipRule,
    real_rule: ClipRule,
    curve: dict,
) -> None:
    """Writes the pictures and the page, and prints the table."""
    index, distance = neighbours.nearest(fake.features["frechet"], real.features["frechet"])
    chosen = report.best_median_worst(distance, higher_is_better=False)
    ranked = [
        one
        for name, i in chosen
        for one in (
            (f"{name}: {fake.videos[i].name}", read_clip(fake.videos[i], fake_rule)),
            (
                f"its nearest real clip: {real.videos[index[i]].name}",
                read_clip(real.videos[index[i]], real_rule),
            ),
        )
    ]
    sides = (("real", real, real_rule), ("generated", fake, fake_rule))
    sheet = [
        (f"{kind} {i}", read_clip(video, rule))
        for kind, side, rule in sides
        for i, video in enumerate(side.videos[:PICTURED_CLIPS])
    ]
    pictures.contact_sheet(directory / "contact_sheet.png", sheet)
    images = {"Real and generated clips": directory / "contact_sheet.png"}
    if curve:
        images["Quality over the length of a clip"] = directory / "over_time.png"
        pictures.curves(
            directory / "over_time.png",
            results.curve_points(curve),
            curve["over_time"]["protocol"],
            "first frame",
        )
    notes = [
        f"Real clips: {config.evaluate.real} ({len(real.videos)} used, {len(real.skipped)} left "
        "out). Generated clips: "
        f"{config.evaluate.fake} ({len(fake.videos)} used, {len(fake.skipped)} left out)."
    ]
    if stored_as(real) != stored_as(fake):
        notes.append(
            f"Real clips are stored as {stored_as(real)} and generated ones as {stored_as(fake)}: "
            "what compression did "
            f"to one side alone is part of every distance here. Store both alike."
        )
        telemetry.say(f"evaluate: {notes[-1]}")
    rows = [
        report.Clips(
            "Generated clips",
            "Best, median and worst by the distance to the nearest real clip, which plays "
            "beside each.",
            ranked,
        )
    ]
    report.write_page(
        directory / "report.html",
        "Generated against real clips",
        found,
        rows,
        images,
        notes,
        config.sample.frames_per_second,
    )
    print(results.table(found))
    print(f"  everything on one page          {directory / 'report.html'}")
