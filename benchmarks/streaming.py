"""A long video through a causal tokenizer in chunks: memory at two lengths, rate, and the
difference from the whole video at once.

    python -m benchmarks.streaming [--frames 1025] [--chunk 16] [--side 128]

Each length runs in a process of its own, whose peak memory is that of the length alone; frames are
computed when they are read, and not stored. The network is the paper's with a causal time axis
(compression 4x8x8), with random weights, which take the same time and memory.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import base
from mebt_jax.config import from_config_dict
from mebt_jax.nn.convolutions import CausalConvState
from mebt_jax.tokenizer import streaming
from mebt_jax.tokenizer.autoencoder import Tokenizer


def frames_of(first: int, count: int, side: int) -> np.ndarray:
    """[1, count, side, side, 3] in [-0.5, 0.5]: a pattern that drifts."""
    t, y, x = np.meshgrid(
        np.arange(first, first + count), np.arange(side), np.arange(side), indexing="ij"
    )
    waves = [
        np.sin(0.07 * x + 0.11 * t),
        np.sin(0.05 * y - 0.13 * t),
        np.cos(0.03 * (x + y) + 0.05 * t),
    ]
    return 0.5 * np.stack(waves, -1)[None].astype(np.float32)


def chunks(frames: int, chunk: int, side: int) -> Iterator[np.ndarray]:
    yield frames_of(0, 1, side)
    for first in range(1, frames, chunk):
        yield frames_of(first, min(chunk, frames - first), side)


def measure(options: argparse.Namespace) -> None:
    config = base.get_config()
    config.data.frames, config.data.resolution = options.frames, options.side
    config.tokenizer.update({"causal": True, "norm": "layer", "hidden": options.hidden})
    built = from_config_dict(config)
    graphdef, params = nnx.split(Tokenizer(built.tokenizer, rngs=nnx.Rngs(0)))
    encode = jax.jit(
        lambda video, frames: streaming.encode_part(nnx.merge(graphdef, params), video, frames)
    )
    decode = jax.jit(
        lambda tokens, frames: streaming.decode_part(nnx.merge(graphdef, params), tokens, frames)
    )

    start, encoded, total = time.perf_counter(), [], 0
    for tokens in streaming.stream(encode, chunks(options.frames, options.chunk, options.side)):
        encoded.append(np.asarray(tokens))
    middle = time.perf_counter()
    for video in streaming.stream(decode, encoded):
        total += np.asarray(video).shape[1]
    end = time.perf_counter()
    assert total == options.frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.frames:5d} frames: encode {options.frames / (middle - start):6.1f} frames/s, "
        f"decode {options.frames / (end - middle):6.1f} frames/s (compilation included), peak "
        f"memory {peak:.2f} GiB",
        flush=True,
    )

    if options.whole:
        video = np.concatenate(list(chunks(options.frames, options.chunk, options.side)), axis=1)
        tokenizer = nnx.merge(graphdef, params)
        features = jax.jit(lambda v: tokenizer.encode(v))(video)
        step = jax.jit(lambda v, frames: features_of(nnx.merge(graphdef, params), v, frames))
        streamed = jnp.concatenate(
            list(streaming.stream(step, chunks(options.frames, options.chunk, options.side))),
            axis=1,
        )
        tokens = jnp.concatenate(encoded, axis=1)
        decoded = jax.jit(lambda t: tokenizer.decode_tokens(t))(tokens)
        rejoined = jnp.concatenate(list(streaming.stream(decode, encoded)), axis=1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{options.frames:5d} frames whole: largest difference of features "
            f"{jnp.abs(features - streamed).max():.1e} (of {jnp.abs(features).max():.1f}), of "
            f"pixels {jnp.abs(decoded - rejoined).max():.1e}; peak memory {peak:.2f} GiB",
            flush=True,
        )


def features_of(
    tokenizer: Tokenizer, video: jax.Array, frames: streaming.Frames
) -> tuple[jax.Array, streaming.Frames]:
    """`streaming.encode_part`, but the features before quantization."""
    state = CausalConvState(frames)
    return tokenizer.encode(video, state), tuple(state.next_frames)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=0, help="only this length, in this process")
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--whole", action="store_true", help="compare with the whole video at once")
    options = parser.parse_args()
    if options.frames:
        measure(options)
        return
    for length in (["--frames=1025"], ["--frames=129"], ["--frames=65", "--whole"]):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.streaming",
                *length,
                f"--chunk={options.chunk}",
                f"--side={options.side}",
                f"--hidden={options.hidden}",
            ],
            check=True,
        )


if __name__ == "__main__":
    main()
