"""Fourth stage: draws clips for a task with the trained models, and writes them for people and for
`evaluate`.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data.video_files import Video
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import cost
from mebt_jax.methods.masked.plan import KINDS, Plan, programs
from mebt_jax.runtime import checkpoints, pictures, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.sampler import STAGE, Sampler
from mebt_jax.tasks import masks
from mebt_jax.tasks.masks import Task

PICTURED_CLIPS = 12
STREAMED = ("mp4", "frames")  # formats that take a video piece by piece
# Fields of config.sample that say which clips, how many at a time, or in which files: not what a
# clip of a given number is.
NOT_THE_CLIP = ("clips", "first_clip", "batch_size", "formats", "frames_per_second")


def run(config: Config, workdir: Path) -> None:
    """Writes clips/clip_0000.mp4 onward, tokens, contact_sheet.png and manifest.json.

    `generate` writes to <workdir>/sample, every other task to <workdir>/sample/<task>. Clip i
    follows from (weights, settings, seed, i) alone, and is not made again where its tokens are
    there: so an interrupted run goes on, and more clips leave the first ones as they are.

    Raises:
        UserError: the mesh, the batch size, the task, an input or a checkpoint do not fit.
    """
    sampler = Sampler.from_workdir(config, workdir)
    asked, config = config, sampler.config  # with the preset put in
    sample = config.sample
    directory = workdir / STAGE if sample.task == "generate" else workdir / STAGE / sample.task

    # ---- task ------------------------------------------------------------------------------------
    task = masks.from_config(config)
    inputs = masks.find_inputs(sample.input) if sample.input and sample.task != "generate" else []
    extends = sample.task == "extend"
    if extends and not set(STREAMED) & set(sample.formats):
        raise UserError(
            f"config.sample.formats is {', '.join(sample.formats)}, but videos of any length are "
            "written piece by piece, "
            f"as {' or '.join(STREAMED)}; add one of them."
        )
    steps = [
        one
        for one in (
            sampler.window_tasks(task, sample.frames, sample.overlap_frames) if extends else [task]
        )
        if not one.known.all()
    ]
    plans = [sampler.plan(one) for one in steps]
    numbers = list(range(sample.first_clip, sample.first_clip + sample.clips))
    hashes = {
        "tokenizer": sampler.tokenizer.content_hash,
        "transformer": checkpoints.content_hash(sampler.transformer.params),
    }

    # ---- what is there already -------------------------------------------------------------------
    clear_other_settings(directory, identity(config, task, inputs) | hashes)
    missing = [number for number in numbers if not tokens_path(directory, number).exists()]
    named = f"preset {sample.preset}, " if sample.preset else ""
    telemetry.say(
        f"{STAGE}: {sample.task}, {len(missing)} of {sample.clips} clips to make, "
        f"{sample.batch_size} at a time; "
        f"{named}{sum(plan.num_passes for plan in plans)} passes each by "
        f"{len(used_programs(plans))} "
        f"compiled programs"
    )

    # ---- draw ------------------------------------------------------------------------------------
    seconds: list[float] = []
    batches = sampler.batches(missing) if missing else []
    with telemetry.progress_bar(
        STAGE, len(batches) * sum(plan.num_passes for plan in plans), 0
    ) as bar:
        for filled, _ in batches:
            start = time.perf_counter()
            new = list(dict.fromkeys(filled))
            videos = (
                [masks.read_clip(inputs[number % len(inputs)], config) for number in filled]
                if inputs
                else None
            )
            if extends:
                pieces = sampler.windows(
                    task, filled, videos, sample.frames, sample.overlap_frames, bar=bar
                )
                stream_clips(directory, new, pieces, config)
            else:
                drawn = sampler.draw_batch(task, filled, videos, bar=bar)
                codes, video = map(
                    sampler.on_host, (drawn.codes, sampler.pixels.video(drawn.codes))
                )
                for i, number in enumerate(new):
                    write_clip(directory, number, video[i], config)
                    in_place(tokens_path(directory, number), lambda path: np.save(path, codes[i]))
            seconds.append(time.perf_counter() - start)

    # ---- results ---------------------------------------------------------------------------------
    if not extends:
        codes = np.stack([np.load(tokens_path(directory, number)) for number in numbers])
        shown = show_clips(sampler, directory, numbers, codes)
        if jax.process_index() == 0:
            np.savez_compressed(directory / "tokens.npz", codes=codes)
            pictures.contact_sheet(directory / "contact_sheet.png", shown)
    made = [clip_record(config, number, inputs) for number in numbers]
    workdir_lib.write_json(
        directory / "manifest.json",
        manifest(config, plans, seconds)
        | hashes
        | {"transformer_step": sampler.transformer.step, "made": made},
    )
    if sample.task == "generate":
        workdir_lib.mark_done(asked, workdir, STAGE, clips=sample.clips, **hashes)


# ---- files ---------------------------------------------------------------------------------------


def tokens_path(directory: Path, number: int) -> Path:
    return directory / "tokens" / f"clip_{number:04d}.npy"


def clip_path(directory: Path, number: int, kind: str) -> Path:
    """Where a clip goes in one of `config.sample.formats`; "frames" is a folder."""
    return directory / "clips" / (f"clip_{number:04d}" + ("" if kind == "frames" else f".{kind}"))


def write_clip(directory: Path, number: int, video: np.ndarray, config: Config) -> None:
    """Writes uint8 [F, H, W, 3] in all formats of the config that are not there yet."""
    rate = config.sample.frames_per_second
    write = {
        "mp4": lambda path: pictures.write_mp4(path, video, rate),
        "gif": lambda path: pictures.write_gif(path, video, rate),
        "npz": lambda path: np.savez_compressed(path, video=video),
        "frames": lambda path: write_frames(path, video, 0),
    }
    for kind in config.sample.formats:
        path = clip_path(directory, number, kind)
        if not path.exists():
            in_place(path, write[kind])


def write_frames(folder: Path, video: np.ndarray, first: int) -> None:
    """frame_00000.png onward."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(video, start=first):
        Image.fromarray(frame).save(folder / f"frame_{i:05d}.png")


def stream_clips(
    directory: Path,
    numbers: list[int],
    pieces: Iterable[tuple[np.ndarray, np.ndarray]],
    config: Config,
) -> None:
    """Writes codes and frames of long videos as they come; a piece is (codes [n, t, H, W], frames
    [n, f, H, W, 3]).
    """
    writers, written, codes = {}, 0, []
    formats = [kind for kind in config.sample.formats if kind in STREAMED]
    hidden = {
        (number, kind): beside(clip_path(directory, number, kind))
        for number in numbers
        for kind in formats
    }
    first_process = jax.process_index() == 0
    for piece_codes, video in pieces:
        codes.append(piece_codes)  # a token is 4 bytes where its pixels are hundreds
        for i, (number, kind) in [
            (i, (number, kind))
            for i, number in enumerate(numbers)
            for kind in formats
            if first_process
        ]:
            if kind == "frames":
                write_frames(hidden[number, kind], video[i], written)
            else:
                if number not in writers:
                    writers[number] = pictures.Mp4Writer(
                        hidden[number, kind], config.sample.frames_per_second
                    )
                writers[number].write(video[i])
        written += video.shape[1]
    for writer in writers.values():
        writer.close()
    for i, number in enumerate(numbers):
        for kind in formats if first_process else ():
            os.replace(hidden[number, kind], clip_path(directory, number, kind))
        in_place(
            tokens_path(directory, number),
            lambda path: np.save(path, np.concatenate(codes, axis=1)[i]),
        )


def in_place(path: Path, write: Callable[[Path], None]) -> None:
    """Writes by way of a hidden file beside it, so that what has the final name is whole; by the
    first process alone.
    """
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside(path))
        os.replace(beside(path), path)


def beside(path: Path) -> Path:
    return path.with_name("." + path.name)


def clear_other_settings(directory: Path, ours: dict[str, Any]) -> None:
    """Removes clips that were made with other settings or weights."""
    path = directory / "settings.json"
    if path.exists() and workdir_lib.read_json(path) == ours:
        return
    if jax.process_index() == 0:
        for name in ("clips", "tokens"):
            shutil.rmtree(directory / name, ignore_errors=True)
    workdir_lib.write_json(path, ours)


def identity(config: Config, task: Task, inputs: list[Video]) -> dict[str, Any]:
    """What a clip follows from beside its number and the weights, as plain JSON."""
    settings = {
        name: value
        for name, value in config_lib.to_dict(config.sample).items()
        if name not in NOT_THE_CLIP
    }
    files = [
        [
            video.name,
            [[file.name, file.stat().st_size, file.stat().st_mtime] for file in video.files],
        ]
        for video in inputs
    ]
    return {
        "settings": settings,
        "drawn": config_lib.content_hash(np.packbits(task.drawn).tobytes().hex()),
        "inputs": files,
    }


# ---- results -------------------------------------------------------------------------------------


def show_clips(
    sampler: Sampler, directory: Path, numbers: list[int], codes: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """The first clips [F, H, W, 3] with their labels; also writes files that clips of an earlier
    run lack.
    """
    lacking = {
        i
        for i, number in enumerate(numbers)
        if not all(
            clip_path(directory, number, kind).exists() for kind in sampler.config.sample.formats
        )
    }
    wanted = sorted(lacking | set(range(min(PICTURED_CLIPS, len(numbers)))))
    shown = []
    for filled, _ in sampler.batches(wanted):
        video = sampler.video_of(codes[filled])  # [B, F, H, W, 3]
        for i, which in enumerate(dict.fromkeys(filled)):
            write_clip(directory, numbers[which], video[i], sampler.config)
            if which < PICTURED_CLIPS:
                shown.append((f"{sampler.config.sample.task} {numbers[which]}", video[i]))
    return shown


def clip_record(config: Config, number: int, inputs: list[Video]) -> dict[str, Any]:
    """What makes one clip again: its number, its seed, its input, and the fields to set."""
    record = {
        "clip": number,
        "seed": config.sample.seed,
        "again": f"--config.sample.first_clip={number} --config.sample.clips=1",
    }
    return record | ({"input": inputs[number % len(inputs)].name} if inputs else {})


def used_programs(plans: list[Plan]) -> set[tuple[Any, ...]]:
    return {(plan.num_known, *program) for plan in plans for program in programs(plan)}


def manifest(config: Config, plans: list[Plan], seconds: list[float]) -> dict[str, Any]:
    """What was done, as plain JSON: settings, the passes by kind, and times (the first batch
    includes compilation).
    """
    later = seconds[1:]
    return {
        "task": config.sample.task,
        "seed": config.sample.seed,
        "clips": config.sample.clips,
        "grid": list(config.grid),
        "frames_per_second": config.sample.frames_per_second,
        "settings": config_lib.to_dict(config.sample),
        "passes": sum(plan.num_passes for plan in plans),
        "passes_by_kind": {kind: sum(plan.count(kind) for plan in plans) for kind in KINDS},
        "committed_per_pass": [one.committed for plan in plans for one in plan.passes],
        "compiled_programs": len(used_programs(plans)),
        "teraflop_per_clip": sum(
            cost.plan_flops(config.transformer, config.tokenizer.codes, plan) for plan in plans
        )
        / 1e12,
        "seconds_first_batch": seconds[0] if seconds else None,
        "seconds_per_later_batch": sum(later) / len(later) if later else None,
        "batch_size": config.sample.batch_size,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
