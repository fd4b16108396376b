"""Fourth stage: draws clips for a task with the trained models, and writes them for people and for
`evaluate`.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data import inputs
from mebt_jax.data.video_files import Video
from mebt_jax.errors import UserError
from mebt_jax.methods.trained_prior import prior_hash
from mebt_jax.runtime import pictures, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.sampler import Sampler
from mebt_jax.tasks import masks
from mebt_jax.tasks.masks import Task

STAGE = "sample"
PICTURED_CLIPS = 12
STREAMED = ("mp4", "frames")  # formats that take a video piece by piece
OTHER = ("drawn", "inputs", "tokenizer", "prior")  # what stands in settings.json beside them
# Fields of config.sample that say which clips, how many at a time, or in which files: not what a
# clip of a given number is.
NOT_THE_CLIP = ("clips", "first_clip", "batch_size", "formats", "frames_per_second")


def run(config: Config, workdir: Path) -> None:
    """Writes clips/clip_0000.mp4 onward, tokens, contact_sheet.png and manifest.json.

    `generate` writes to <workdir>/sample, every other task to <workdir>/sample/<task>, and to a
    folder in there if clips of other settings, inputs or weights are there already. Clip i follows
    from (weights, settings, seed, i) alone, and is not drawn again where its tokens are there: so
    an interrupted run goes on, and more clips leave the first ones as they are.

    Raises:
        UserError: the mesh, the batch size, the task, an input or a checkpoint do not fit.
    """
    sampler = Sampler.from_workdir(config, workdir)
    sample, method = config.sample, sampler.prior.method
    base = workdir / STAGE if sample.task == "generate" else workdir / STAGE / sample.task

    # ---- task ------------------------------------------------------------------------------------
    task = masks.from_config(config)
    videos = inputs.find_inputs(sample.input) if sample.input and sample.task != "generate" else []
    extends = sample.task == "extend"
    if extends and not set(STREAMED) & set(sample.formats):
        raise UserError(
            f"config.sample.formats is {', '.join(sample.formats)}, but videos of any length are "
            f"written chunk by chunk, as {' or '.join(STREAMED)}; add one of them."
        )
    windows = [task]
    if extends:
        windows = sampler.window_tasks(task, sample.frames, sample.overlap_frames)
    windows = [window for window in windows if not window.known.all()]
    for window in windows:
        sampler.check(window)
    report = method.sampling_report([window.num_known for window in windows])
    indices = list(range(sample.first_clip, sample.first_clip + sample.clips))
    hashes = {
        "tokenizer": sampler.space.content_hash,
        "prior": prior_hash(sampler.prior.params),
    }

    # ---- what is there already -------------------------------------------------------------------
    directory = claim_folder(base, identity(config, task, videos) | hashes)
    missing = [index for index in indices if not tokens_path(directory, index).exists()]
    passes = sum(method.num_passes(window.num_known) for window in windows)
    telemetry.say(
        f"{STAGE}: {sample.task}, {len(missing)} of {sample.clips} clips to draw, "
        f"{sample.batch_size} at a time; {passes} passes each; in {directory}"
    )

    # ---- draw ------------------------------------------------------------------------------------
    seconds: list[float] = []
    batches = sampler.batches(missing) if missing else []
    with telemetry.progress_bar(STAGE, len(batches) * passes, 0) as bar:
        for filled, _ in batches:
            start = time.perf_counter()
            new = list(dict.fromkeys(filled))
            given = None
            if videos:
                given = [inputs.read_input(videos[i % len(videos)], config) for i in filled]
            if extends:
                chunks = sampler.windows(
                    task, filled, given, sample.frames, sample.overlap_frames, bar=bar
                )
                stream_clips(directory, new, chunks, config)
            else:
                latents = sampler.draw_batch(task, filled, given, bar=bar).latents
                video = sampler.on_host(sampler.space.decode(latents))
                latents = sampler.on_host(latents)
                for row, index in enumerate(new):
                    write_clip(directory, index, video[row], config)
                    write_tokens(directory, index, latents[row])
            seconds.append(time.perf_counter() - start)

    # ---- results ---------------------------------------------------------------------------------
    if not extends:
        latents = np.stack([np.load(tokens_path(directory, index)) for index in indices])
        shown = show_clips(sampler, directory, indices, latents)
        if jax.process_index() == 0:
            np.savez_compressed(directory / "tokens.npz", codes=latents)
            pictures.contact_sheet(directory / "contact_sheet.png", shown)
    records = [clip_record(config, index, videos) for index in indices]
    manifest = run_report(config, seconds) | report | hashes
    manifest |= {"prior_step": sampler.prior.step, "made": records}
    workdir_lib.write_json(directory / "manifest.json", manifest)
    if sample.task == "generate":
        folder = str(directory.relative_to(base))
        workdir_lib.mark_done(config, workdir, STAGE, clips=sample.clips, folder=folder, **hashes)


# ---- files ---------------------------------------------------------------------------------------


def tokens_path(directory: Path, index: int) -> Path:
    return directory / "tokens" / f"clip_{index:04d}.npy"


def clip_path(directory: Path, index: int, kind: str) -> Path:
    """Where a clip goes in one of `config.sample.formats`; "frames" is a folder."""
    return directory / "clips" / (f"clip_{index:04d}" + ("" if kind == "frames" else f".{kind}"))


def write_clip(directory: Path, index: int, video: np.ndarray, config: Config) -> None:
    """Writes uint8 [F, H, W, 3] in all formats of the config that are not there yet."""
    rate = config.sample.frames_per_second
    write = {
        "mp4": lambda path: pictures.write_mp4(path, video, rate),
        "gif": lambda path: pictures.write_gif(path, video, rate),
        "npz": lambda path: np.savez_compressed(path, video=video),
        "frames": lambda path: write_frames(path, video, 0),
    }
    for kind in config.sample.formats:
        path = clip_path(directory, index, kind)
        if not path.exists():
            write_whole(path, write[kind])


def write_tokens(directory: Path, index: int, latents: np.ndarray) -> None:
    """Writes the latents [T, H, W, ...] of a clip."""
    write_whole(tokens_path(directory, index), lambda path: np.save(path, latents))


def write_frames(folder: Path, video: np.ndarray, first: int) -> None:
    """frame_00000.png onward."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(video, start=first):
        Image.fromarray(frame).save(folder / f"frame_{i:05d}.png")


def stream_clips(
    directory: Path,
    indices: list[int],
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    config: Config,
) -> None:
    """Writes latents and frames of long videos as they are drawn.

    A chunk is (latents [n, t, H, W, ...], frames [n, f, H, W, 3]).
    """
    formats = [kind for kind in config.sample.formats if kind in STREAMED]
    if jax.process_index() > 0:
        formats = []  # the first process writes alone
    writers, written, latents = {}, 0, []
    for chunk_latents, video in chunks:
        latents.append(chunk_latents)  # a token is 4 bytes where its pixels are hundreds
        for row, index in enumerate(indices):
            for kind in formats:
                path = hidden_path(clip_path(directory, index, kind))
                if kind == "frames":
                    write_frames(path, video[row], written)
                    continue
                if index not in writers:
                    writers[index] = pictures.Mp4Writer(path, config.sample.frames_per_second)
                writers[index].write(video[row])
        written += video.shape[1]
    for writer in writers.values():
        writer.close()
    whole = np.concatenate(latents, axis=1)  # [n, T, H, W, ...]
    for row, index in enumerate(indices):
        for kind in formats:
            path = clip_path(directory, index, kind)
            os.replace(hidden_path(path), path)
        write_tokens(directory, index, whole[row])


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a hidden file and then gives it its name, so that a file of that name is whole.

    The first process writes alone.
    """
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(hidden_path(path))
        os.replace(hidden_path(path), path)


def hidden_path(path: Path) -> Path:
    return path.with_name("." + path.name)


def claim_folder(base: Path, settings: dict[str, Any]) -> Path:
    """The folder of the clips with these settings, inputs and weights: `base` for the first that
    were drawn, for all others one inside it that is named after what differs. What is there stays.
    """
    saved = {path.parent: saved_settings(path) for path in base.glob("settings.json")}
    saved |= {path.parent: saved_settings(path) for path in base.glob("*/settings.json")}
    for folder, theirs in saved.items():
        if theirs == settings:
            return folder
    folder = base
    if (base / "tokens").exists() or (base / "clips").exists():
        folder = base / difference(saved.get(base, {"settings": {}}), settings)
    workdir_lib.write_json(folder / "settings.json", settings)
    return folder


def saved_settings(path: Path) -> dict[str, Any]:
    """A settings.json, if of an earlier version as this one would write it."""
    theirs = workdir_lib.read_json(path)
    # A field that was not there yet means its default; priors were called transformers.
    theirs["settings"] = clip_settings(Config()) | theirs["settings"]
    return {"prior": theirs.pop("transformer", None)} | theirs


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """A file name that tells what is new in `ours`, such as seed=1-3f2a90."""
    names = [
        f"{name}={value}"
        for name, value in ours["settings"].items()
        if theirs["settings"].get(name) != value
    ]
    names += [f"other_{name}" for name in OTHER if theirs.get(name) != ours[name]]
    text = re.sub(r"[^\w.=+-]+", "_", "_".join(names))[:60]
    # The hash keeps names apart that are cut short or equal, such as those of two other inputs.
    return f"{text}-{config_lib.content_hash(ours)[:6]}"


def all_settings(config: Config) -> dict[str, Any]:
    """The fields of `config.sample` and `config.decoding`, which have no name in common."""
    return config_lib.to_dict(config.sample) | config_lib.to_dict(config.decoding)


def clip_settings(config: Config) -> dict[str, Any]:
    """Those that decide what a clip of a given index is."""
    return {name: value for name, value in all_settings(config).items() if name not in NOT_THE_CLIP}


def identity(config: Config, task: Task, videos: list[Video]) -> dict[str, Any]:
    """What a clip follows from beside its index and the weights, as plain JSON."""
    files = [
        [
            video.name,
            [[file.name, file.stat().st_size, file.stat().st_mtime] for file in video.files],
        ]
        for video in videos
    ]
    return {
        "settings": clip_settings(config),
        "drawn": config_lib.content_hash(np.packbits(task.drawn).tobytes().hex()),
        "inputs": files,
    }


# ---- results -------------------------------------------------------------------------------------


def show_clips(
    sampler: Sampler, directory: Path, indices: list[int], latents: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """The first clips [F, H, W, 3] with their labels.

    Also writes the files of formats in which an earlier run did not write a clip.
    """
    sample = sampler.config.sample
    incomplete = {
        row
        for row, index in enumerate(indices)
        if not all(clip_path(directory, index, kind).exists() for kind in sample.formats)
    }
    rows = sorted(incomplete | set(range(min(PICTURED_CLIPS, len(indices)))))
    shown = []
    for filled, _ in sampler.batches(rows):
        video = sampler.video_of(latents[filled])  # [B, F, H, W, 3]
        for i, row in enumerate(dict.fromkeys(filled)):
            write_clip(directory, indices[row], video[i], sampler.config)
            if row < PICTURED_CLIPS:
                shown.append((f"{sample.task} {indices[row]}", video[i]))
    return shown


def clip_record(config: Config, index: int, videos: list[Video]) -> dict[str, Any]:
    """How to draw one clip again: its index, its seed, its input, and the fields to set."""
    record = {
        "clip": index,
        "seed": config.sample.seed,
        "again": f"--config.sample.first_clip={index} --config.sample.clips=1",
    }
    return record | ({"input": videos[index % len(videos)].name} if videos else {})


def run_report(config: Config, seconds: list[float]) -> dict[str, Any]:
    """Settings and times of the run, as plain JSON; the first batch includes compilation."""
    later = seconds[1:]
    return {
        "task": config.sample.task,
        "seed": config.sample.seed,
        "clips": config.sample.clips,
        "grid": list(config.grid),
        "frames_per_second": config.sample.frames_per_second,
        "settings": all_settings(config),
        "seconds_first_batch": seconds[0] if seconds else None,
        "seconds_per_later_batch": sum(later) / len(later) if later else None,
        "batch_size": config.sample.batch_size,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
