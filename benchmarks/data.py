"""How fast clips come out of the pipeline, against decoding the videos anew for each clip. Makes its own videos.

    python -m benchmarks.data

Rates are per second of processor time over all threads, that is per core, so other programs on the machine disturb them
little. "Decoding the videos" seeks to the key frame before the window (x264's default is one in 250 frames) and decodes from
there to the end of the window.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from configs import base
from mebt_jax.config import Config, from_config_dict
from mebt_jax.data import pipeline, sources
from mebt_jax.data.moving_shapes import MovingShapes
from mebt_jax.runtime import pictures

VIDEO_FRAMES = 300
VIDEO_SIZE = 256
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--clips", type=int, default=64, help="clips per measurement")
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()

    config = base.get_config()
    config.data.resolution = options.resolution
    config.data.source = "folder"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos"
        shapes = MovingShapes(options.videos, VIDEO_FRAMES, VIDEO_SIZE, seed=0)
        for i in range(options.videos):
            pictures.write_mp4(folder / f"{i}.mp4", shapes[i]["video"], frames_per_second=25)
        config.data.path = str(folder)
        for frames in (16, 128):
            config.data.frames = frames
            measure_folder(from_config_dict(config), Path(temporary) / "run", options.clips)

    config.data.source = "moving_shapes"
    config.data.frames, config.data.resolution = 16, 32
    config.tokenizer.compression = config.tokenizer.patch = (4, 4, 4)
    demo = from_config_dict(config)
    batches = pipeline.train_batches(sources.open_sources(demo, Path()), demo, BATCH)
    drawn = rate(lambda: next(batches), BATCH, 10 * options.clips)
    print(f"moving shapes, 16 frames of 32x32: {drawn:.0f} clips/s per core")


def measure_folder(config: Config, workdir: Path, num_clips: int) -> None:
    """Prints rates of the pipeline and of direct decoding for one clip length."""
    data = config.data
    start = time.process_time()
    sources.prepare(config, workdir)
    prepared = time.process_time() - start
    batches = pipeline.train_batches(sources.open_sources(config, workdir), config, BATCH)
    direct = direct_clips(sorted(Path(data.path).iterdir()), data.frames, data.resolution)
    ours = rate(lambda: next(batches), BATCH, num_clips)
    theirs = rate(lambda: next(direct), 1, num_clips)
    print(f"{data.frames} frames of {data.resolution}x{data.resolution}: pipeline {ours:.1f} clips/s per core, decoding the "
          f"videos {theirs:.1f}, ratio {ours / theirs:.1f}; prepared once in {prepared:.1f} s of one core")


def rate(step: Callable[[], object], clips_per_step: int, num_clips: int) -> float:
    """Clips per second of processor time, after enough steps that what was made ahead does not count."""
    for _ in range(pipeline.BATCHES_AHEAD + 1):
        step()
    start = time.process_time()
    steps = max(1, num_clips // clips_per_step)
    for _ in range(steps):
        step()
    return steps * clips_per_step / (time.process_time() - start)


def direct_clips(paths: list[Path], frames: int, resolution: int) -> Iterator[np.ndarray]:
    """Random windows decoded from the video files: seek to the key frame before, decode up to the end of the window."""
    rng = np.random.default_rng(0)
    while True:
        with av.open(str(paths[rng.integers(len(paths))])) as container:
            stream = container.streams.video[0]
            ticks = 1 / (stream.average_rate * stream.time_base)
            first = int(rng.integers(stream.frames - frames + 1) * ticks)
            container.seek(first, stream=stream)
            window = itertools.islice((frame for frame in container.decode(stream) if frame.pts >= first), frames)
            yield np.stack([frame.to_ndarray(format="rgb24", width=resolution, height=resolution, interpolation="AREA")
                            for frame in window])


if __name__ == "__main__":
    main()
