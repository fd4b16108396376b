"""A long video through a causal tokenizer in pieces: memory at two lengths, rate, and the gap to
the whole at once.

    python -m benchmarks.streaming [--frames 1025] [--piece 16] [--side 128]

One process per length, so that the peak memory of each is its own; the frames are made as they are
read and not kept. The network is the paper's with a causal time axis (compression 4x8x8), with
random weights, which take the same time and memory.
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
from mebt_jax.tokenizer import quantizers, streaming
from mebt_jax.tokenizer.autoencoder import Tokenizer, decode_codes


def frames_of(first: int, number: int, side: int) -> np.ndarray:
    """[1, number, side, side, 3] in [-0.5, 0.5]: a pattern that drifts."""
    t, y, x = np.meshgrid(
        np.arange(first, first + number), np.arange(side), np.arange(side), indexing="ij"
    )
    waves = [
        np.sin(0.07 * x + 0.11 * t),
        np.sin(0.05 * y - 0.13 * t),
        np.cos(0.03 * (x + y) + 0.05 * t),
    ]
    return 0.5 * np.stack(waves, -1)[None].astype(np.float32)


def pieces(frames: int, piece: int, side: int) -> Iterator[np.ndarray]:
    yield frames_of(0, 1, side)
    for first in range(1, frames, piece):
        yield frames_of(first, min(piece, frames - first), side)


def measure(options: argparse.Namespace) -> None:
    config = base.get_config()
    config.data.frames, config.tokenizer.causal, config.tokenizer.norm = (
        options.frames,
        True,
        "token",
    )
    config.data.resolution, config.tokenizer.hidden = options.side, options.hidden
    built = from_config_dict(config)
    graphdef, params = nnx.split(Tokenizer(built.tokenizer, rngs=nnx.Rngs(0)))
    codebook = quantizers.init_codebook(built.tokenizer, jax.random.key(0))
    encode = jax.jit(
        lambda video, state: streaming.encode_piece(
            nnx.merge(graphdef, params), codebook, video, state
        )
    )
    decode = jax.jit(
        lambda codes, state: streaming.decode_piece(
            nnx.merge(graphdef, params), codebook, codes, state
        )
    )

    start, encoded, total = time.perf_counter(), [], 0
    for codes in streaming.stream(encode, pieces(options.frames, options.piece, options.side)):
        encoded.append(np.asarray(codes))
    middle = time.perf_counter()
    for video in streaming.stream(decode, encoded):
        total += np.asarray(video).shape[1]
    end = time.perf_counter()
    assert total == options.frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.frames:5d} frames: encode {options.frames / (middle - start):6.1f} frames/s, "
        "decode "
        f"{options.frames / (end - middle):6.1f} frames/s (compilation included), peak memory "
        f"{peak:.2f} GiB",
        flush=True,
    )

    if options.whole:
        video = np.concatenate(list(pieces(options.frames, options.piece, options.side)), axis=1)
        tokenizer = nnx.merge(graphdef, params)
        features = jax.jit(lambda v: tokenizer.encode(v))(video)
        step = jax.jit(lambda v, s: features_of(graphdef, params, v, s))
        streamed = jnp.concatenate(
            list(streaming.stream(step, pieces(options.frames, options.piece, options.side))),
            axis=1,
        )
        codes = jnp.concatenate([jnp.asarray(c) for c in encoded], axis=1)
        decoded = jax.jit(lambda c: decode_codes(tokenizer, codebook, c))(codes)
        pieced = jnp.concatenate(list(streaming.stream(decode, encoded)), axis=1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{options.frames:5d} frames whole: largest difference of features "
            f"{jnp.abs(features - streamed).max():.1e} (of "
            f"{jnp.abs(features).max():.1f}), of pixels {jnp.abs(decoded - pieced).max():.1e}; "
            f"peak memory {peak:.2f} GiB",
            flush=True,
        )


def features_of(graphdef, params, video, state):
    past = streaming.Past(state)
    return nnx.merge(graphdef, params).encode(video, past), tuple(past.after)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=0, help="one length, in this process")
    parser.add_argument("--piece", type=int, default=16)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--whole", action="store_true", help="compare with the whole at once")
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
                f"--piece={options.piece}",
                f"--side={options.side}",
                f"--hidden={options.hidden}",
            ],
            check=True,
        )


if __name__ == "__main__":
    main()
