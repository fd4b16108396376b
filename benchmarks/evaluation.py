"""Time per thousand videos and peak memory of an evaluation, for few and for many videos. The clips
are moving shapes.

    JAX_PLATFORMS=cpu python -m benchmarks.evaluation [--clips 2048] [--long_clips 512] [--i3d]

Rows "whole" are `--stage=evaluate` of one folder of mp4 files against another, from decoding to the
page, with that many files a side (links to a few different ones). Seconds are of the clock and, in
brackets, of the processor over all threads, which other programs on the machine disturb less. Each
row runs in a process of its own, whose peak memory is that of the row alone.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flax import nnx

from mebt_jax.config import default_config, from_config_dict
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.metrics import results
from mebt_jax.metrics.measures import Measure, compiled, measure_clips
from mebt_jax.metrics.networks import i3d
from mebt_jax.metrics.networks.random_features import random_features
from mebt_jax.metrics.protocols import PROTOCOLS, ClipForm
from mebt_jax.metrics.worlds import shapes_physics
from mebt_jax.runtime import pictures
from mebt_jax.runtime.mesh import make_mesh
from mebt_jax.runtime.runtime_config import MeshConfig
from mebt_jax.stages.evaluation import compare_folders

RESOLUTION = 128
BATCH = {16: 8, 128: 2}
DRAWN = 16  # different clips a side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--clips", type=int, default=2048, help="clips of 16 frames a side in the long row"
    )
    parser.add_argument(
        "--long_clips", type=int, default=512, help="clips of 128 frames a side in the long row"
    )
    parser.add_argument(
        "--i3d", action="store_true", help="also I3D, with random weights: minutes on a CPU"
    )
    parser.add_argument(
        "--row",
        nargs=3,
        metavar=("WHAT", "FRAMES", "CLIPS"),
        help="only this row, in this process: whole, random or i3d",
    )
    options = parser.parse_args()
    if options.row:
        kind, frames, clips = options.row
        start, used = (whole if kind == "whole" else features)(kind, int(frames), int(clips))
        seconds, used = time.time() - start, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{kind}: {clips} clips of {frames} frames of {RESOLUTION}x{RESOLUTION}: {seconds:.0f} "
            f"s ({used:.0f}), {1000 * seconds / int(clips):.0f} s "
            f"({1000 * used / int(clips):.0f}) per 1000, peak memory {peak:.2f} GiB",
            flush=True,
        )
        return
    rows = [
        ("whole", 16, options.clips // 8),
        ("whole", 16, options.clips),
        ("whole", 128, options.long_clips // 8),
        ("whole", 128, options.long_clips),
        ("random", 16, 256),
        ("random", 128, 32),
    ]
    rows += [("i3d", 16, 16), ("i3d", 128, 2)] * options.i3d
    for row in rows:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.evaluation", "--row", *map(str, row)], check=True
        )
    distances()
    physics()


def whole(_: str, frames: int, clips: int) -> tuple[float, float]:
    """Compares two folders; returns (clock, processor time) at the start of the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        for seed, side in enumerate(("real", "fake")):
            source = MovingShapes(DRAWN, frames, RESOLUTION, seed=seed)
            for i in range(clips):
                path = Path(folder) / side / f"{i}.mp4"
                if i < DRAWN:
                    pictures.write_mp4(path, source[i]["video"], 8)
                else:
                    path.symlink_to(f"{i % DRAWN}.mp4")
        config = default_config()
        config.data.frames = frames
        config.evaluate.batch_size = BATCH[frames]
        config.evaluate.real, config.evaluate.fake = f"{folder}/real", f"{folder}/fake"
        config.mesh.data = 1
        started = time.time(), time.process_time()
        compare_folders.run(from_config_dict(config), Path(folder))
        return started


def features(network: str, frames: int, clips: int) -> tuple[float, float]:
    """Computes features of clips in memory; returns (clock, processor time) at the start, after
    compilation.
    """
    source = MovingShapes(DRAWN, frames, RESOLUTION, seed=0)
    drawn = [source[i]["video"] for i in range(DRAWN)]
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1))
    if network == "i3d":
        graphdef, weights = nnx.split(i3d.I3D(rngs=nnx.Rngs(0)))
        measure = Measure(
            network, lambda w, video: i3d.i3d_logits(nnx.merge(graphdef, w), video), weights
        )
    else:
        measure = Measure(network, lambda w, video: random_features(video))
    run = compiled({network: measure}, mesh)
    measure_clips(run, drawn[: BATCH[frames]], BATCH[frames], mesh)  # compiles
    started = time.time(), time.process_time()
    measure_clips(run, (drawn[i % DRAWN] for i in range(clips)), BATCH[frames], mesh)
    return started


def distances() -> None:
    rng = np.random.default_rng(0)
    fake, real, other = rng.standard_normal((3, 2048, 400), np.float32)
    start = time.process_time()
    results.distances(
        PROTOCOLS["i3d"], fake, real, other, ClipForm(16, RESOLUTION, 1), "generated", "drawn"
    )
    print(
        f"all distances of 2048 against 2048 rows of 400 features, with noise, floor and limit: "
        f"{time.process_time() - start:.0f} s",
        flush=True,
    )


def physics() -> None:
    source = MovingShapes(17, 16, 32, seed=0)
    videos = [source[i]["video"] for i in range(17)]
    shapes_physics.physics(videos[:1])
    start = time.process_time()
    shapes_physics.physics(videos[1:])
    print(
        "physics of moving shapes, 16 frames of 32x32: "
        f"{1000 * (time.process_time() - start) / 16:.0f} s per 1000",
        flush=True,
    )


if __name__ == "__main__":
    main()
