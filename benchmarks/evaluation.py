"""Time per thousand videos and peak memory of an evaluation, for few and for many videos. Draws its own clips.

    JAX_PLATFORMS=cpu python -m benchmarks.evaluation [--clips 512] [--long_clips 64] [--i3d]

Seconds are processor time over all threads, which other programs on the machine disturb little; clips are drawn before the
clock starts and come again and again. Each row is a process of its own, so that its peak memory is its own.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
from flax import nnx

from mebt_jax.config import MeshConfig
from mebt_jax.data.moving_shapes import MovingShapes
from mebt_jax.metrics import i3d, results, shapes_physics
from mebt_jax.metrics.extraction import Extractor, extract
from mebt_jax.metrics.protocols import PROTOCOLS
from mebt_jax.metrics.random_features import random_features
from mebt_jax.runtime.mesh import make_mesh

RESOLUTION = 128
BATCH = {16: 8, 128: 2}
DRAWN = 8  # different clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=512, help="clips of 16 frames in the long row")
    parser.add_argument("--long_clips", type=int, default=64, help="clips of 128 frames in the long row")
    parser.add_argument("--i3d", action="store_true", help="also I3D, with random weights: minutes on a CPU")
    parser.add_argument("--row", nargs=3, metavar=("NETWORK", "FRAMES", "CLIPS"), help="one row alone, in this process")
    options = parser.parse_args()
    if options.row:
        network, frames, clips = options.row
        features(network, int(frames), int(clips))
        return
    rows = [("random", 16, options.clips // 8), ("random", 16, options.clips), ("random", 128, options.long_clips // 8),
            ("random", 128, options.long_clips)]
    rows += [("i3d", 16, 8)] * options.i3d
    for row in rows:
        subprocess.run([sys.executable, "-m", "benchmarks.evaluation", "--row", *map(str, row)], check=True)
    distances()
    physics()


def features(network: str, frames: int, clips: int) -> None:
    source = MovingShapes(DRAWN, frames, RESOLUTION, seed=0)
    drawn = [source[i]["video"] for i in range(DRAWN)]
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1))
    if network == "i3d":
        graphdef, weights = nnx.split(i3d.I3D(rngs=nnx.Rngs(0)))
        extractor = Extractor(network, lambda w, video: i3d.i3d_logits(nnx.merge(graphdef, w), video), weights)
    else:
        extractor = Extractor(network, lambda w, video: random_features(video))
    extract([extractor], drawn[:BATCH[frames]], BATCH[frames], mesh)  # compiles
    start = time.process_time()
    extract([extractor], (drawn[i % DRAWN] for i in range(clips)), BATCH[frames], mesh)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{network}: {clips} clips of {frames} frames of {RESOLUTION}x{RESOLUTION}: {1000 * seconds / clips:.0f} s per 1000, "
          f"peak memory {peak:.2f} GiB", flush=True)


def distances() -> None:
    rng = np.random.default_rng(0)
    fake, real, other = rng.standard_normal((3, 2048, 400), np.float32)
    start = time.process_time()
    results.distances(PROTOCOLS["i3d"], fake, real, other, 16, "generated", "drawn")
    print(f"all distances of 2048 against 2048 rows of 400 features, with noise, floor and limit: "
          f"{time.process_time() - start:.0f} s", flush=True)


def physics() -> None:
    source = MovingShapes(17, 16, 32, seed=0)
    videos = [source[i]["video"] for i in range(17)]
    shapes_physics.physics(videos[:1])
    start = time.process_time()
    shapes_physics.physics(videos[1:])
    print(f"physics of moving shapes, 16 frames of 32x32: {1000 * (time.process_time() - start) / 16:.0f} s per 1000", flush=True)


if __name__ == "__main__":
    main()
