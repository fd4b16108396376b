"""Rates of preparing and reading a data set, beside decoding the videos again for each clip.

    python -m benchmarks.data [--folder=DIR]

Rates are per second of processor time over all threads, that is per core, so other programs on the
machine disturb them little. "Decoding the videos" seeks to the key frame before the window (x264's
default is one in 250 frames) and decodes from there to the end of the window. The videos are those
of the folder, or moving shapes in the size of UCF-101 under film grain, which is as hard for both
codecs as real videos.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from mebt_jax.config import Config, default_config, from_config_dict
from mebt_jax.data import pipeline, record_folders, sources, token_cache
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.runtime import pictures

VIDEO_FRAMES = 300
VIDEO_SIZE = 240
GRAIN = 2  # standard deviation of the film grain, of 255 levels
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument(
        "--folder",
        type=Path,
        help="videos to use instead of drawn ones, each longer than 128 frames",
    )
    parser.add_argument("--clips", type=int, default=64, help="clips per measurement")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument(
        "--frames",
        type=int,
        nargs="+",
        choices=(16, 128),
        default=(16, 128),
        help="lengths of clips to measure",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="instead measure that many worker processes, by the clock: on a quiet machine",
    )
    options = parser.parse_args()

    config = default_config()
    config.data.resolution = options.resolution
    config.data.source = "folder"
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "videos"
        if not options.folder:
            write_videos(folder, options.videos)
        config.data.path = str(folder)
        for frames in options.frames:
            config.data.frames, config.data.record_frames = frames, 128 if frames == 16 else 256
            if options.workers is not None:
                config.data.workers = options.workers
                measure_workers(from_config_dict(config), Path(temporary) / "run", options.clips)
                continue
            direct = direct_clips(sorted(folder.iterdir()), frames, options.resolution)
            theirs = rate(lambda: next(direct), 1, options.clips)
            print(
                f"{frames} frames of {options.resolution}x{options.resolution}: decoding the "
                f"videos {theirs:.1f} clips/s per "
                f"core"
            )
            for quality in (95, 0):
                config.data.jpeg_quality = quality
                measure_folder(
                    from_config_dict(config), Path(temporary) / "run", options.clips, theirs
                )
            measure_tokens(from_config_dict(config), Path(temporary) / "run", options.clips, theirs)

    if options.workers is not None:
        return
    config.data.source, config.data.path = "moving_shapes", ""
    config.data.frames, config.data.resolution = 16, 32
    config.tokenizer.compression = config.tokenizer.patch = (4, 4, 4)
    demo = from_config_dict(config)
    batches = pipeline.train_batches(sources.open_sources(demo, Path()), demo, BATCH)
    drawn = rate(lambda: next(batches), BATCH, 10 * options.clips)
    print(f"moving shapes, 16 frames of 32x32: {drawn:.0f} clips/s per core")


def write_videos(folder: Path, count: int) -> None:
    """mp4 files of VIDEO_FRAMES frames of VIDEO_SIZE x 4/3 VIDEO_SIZE."""
    shapes = MovingShapes(count, VIDEO_FRAMES, VIDEO_SIZE, seed=0)
    rng = np.random.default_rng(0)
    for i in range(count):
        video = np.pad(
            shapes[i]["video"], ((0, 0), (0, 0), (VIDEO_SIZE // 6,) * 2, (0, 0)), mode="reflect"
        ).astype(np.float32)
        for frame in video:
            frame += rng.normal(0, GRAIN, frame.shape)
        pictures.write_mp4(
            folder / f"{i}.mp4", video.clip(0, 255).astype(np.uint8), frames_per_second=25
        )


def measure_folder(config: Config, workdir: Path, num_clips: int, direct: float) -> None:
    """Prints the rates of preparation and of the pipeline for one clip length and quality."""
    data = config.data
    start = time.process_time()
    sources.prepare(config, workdir)
    prepared = time.process_time() - start
    folder = sources.records_folder(config, workdir)
    frames = sum(record_folders.read_manifest(folder)["frames"].values())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    batches = pipeline.train_batches(sources.open_sources(config, workdir), config, BATCH)
    ours = rate(lambda: next(batches), BATCH, num_clips)
    print(
        f"  quality {data.jpeg_quality}: {ours:.1f} clips/s per core, {ours / direct:.1f} times; "
        f"prepared at {frames / prepared:.0f} frames/s per core (checking included), "
        f"{size / frames / 1e3:.1f} kB a frame on disk"
    )


def measure_workers(config: Config, workdir: Path, num_clips: int) -> None:
    """Prints how many clips a second a training loop gets from the worker processes."""
    data = config.data
    sources.prepare(config, workdir)
    batches = pipeline.train_batches(sources.open_sources(config, workdir), config, BATCH)
    ours = rate(lambda: next(batches), BATCH, num_clips, clock=time.perf_counter)
    print(
        f"{data.frames} frames of {data.resolution}x{data.resolution}, quality "
        f"{data.jpeg_quality}, {data.workers} workers: {ours:.1f} clips/s"
    )


def measure_tokens(config: Config, workdir: Path, num_clips: int, direct: float) -> None:
    """Prints the rate of reading stored tokens, of a fake tokenizer that takes no time."""
    opened = sources.open_sources(config, workdir)
    t, h, w = config.tokenizer.compression
    stored = token_cache.prepare(
        config, workdir, opened, "none", lambda video: video[:, ::t, ::h, ::w, 0].astype(np.int32)
    )
    batches = pipeline.train_batches(stored, config, BATCH)
    ours = rate(lambda: next(batches), BATCH, 4 * num_clips)
    print(f"  stored tokens: {ours:.0f} clips/s per core, {ours / direct:.0f} times")


def rate(
    step: Callable[[], object],
    clips_per_step: int,
    num_clips: int,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Clips per second, of processor time by default. Steps before the measurement use up the
    batches that were prepared in advance.
    """
    for _ in range(pipeline.BATCHES_AHEAD + 1):
        step()
    start = clock()
    steps = max(1, num_clips // clips_per_step)
    for _ in range(steps):
        step()
    return steps * clips_per_step / (clock() - start)


def direct_clips(paths: list[Path], frames: int, resolution: int) -> Iterator[np.ndarray]:
    """Random windows decoded from the video files: seeks to the key frame before a window and
    decodes up to its end.
    """
    rng = np.random.default_rng(0)
    while True:
        with av.open(str(paths[rng.integers(len(paths))])) as container:
            stream = container.streams.video[0]
            ticks = 1 / (stream.average_rate * stream.time_base)
            first = int(rng.integers(stream.frames - frames + 1) * ticks)
            container.seek(first, stream=stream)
            window = itertools.islice(
                (frame for frame in container.decode(stream) if frame.pts >= first), frames
            )
            yield np.stack(
                [
                    frame.to_ndarray(
                        format="rgb24", width=resolution, height=resolution, interpolation="AREA"
                    )
                    for frame in window
                ]
            )


if __name__ == "__main__":
    main()
