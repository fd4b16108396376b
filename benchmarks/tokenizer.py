"""Time and memory of the paper's tokenizer network on this machine, against the official PyTorch
modules in the same run.

    python -m benchmarks.tokenizer [--official CHECKOUT --official-python PYTHON] [--side 128
    --frames 16 --hidden 32]

CHECKOUT is a checkout of github.com/Ugness/MeBT, PYTHON an interpreter with torch and numpy. In
both programs a train step is encoder, codebook, decoder, L1 and commitment, gradients and Adam, and
the codebook's running averages, without LPIPS and discriminators. Each program runs in its own
process, one after the other. Times are the least of several runs without compilation; memory is the
peak of the process beyond its memory before the first timed run.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.official_sampler import memory_kib, reset_peak
from configs import base
from mebt_jax.config import Config, from_config_dict
from mebt_jax.runtime.compilation import low_memory_compiler_options
from mebt_jax.stages import tokenizer as stage
from mebt_jax.tokenizer import latent_space

WORKS = ("encode", "decode", "train")


def measure_ours(config: Config, runs: int) -> None:
    """Prints one JSON line for each kind of work."""
    settings = config.tokenizer
    parts = stage.training_parts(config)
    state = jax.jit(functools.partial(stage.create_state, config, parts))(
        jax.random.key(0), jax.random.key(1)
    )
    size = (
        settings.training.batch_size,
        config.data.frames,
        config.data.resolution,
        config.data.resolution,
        3,
    )
    video = jnp.asarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    key = jax.random.key(2)

    variables = nnx.merge_state(state.params, state.model_state)
    encode = compiled(
        functools.partial(latent_space.encode_video, parts.graphdef), variables, video
    )
    tokens = encode(variables, video)
    decode = compiled(
        functools.partial(latent_space.decode_tokens, parts.graphdef), variables, tokens
    )
    step = functools.partial(stage.train_step, parts=parts, config=settings)
    train = (
        jax.jit(step, donate_argnums=0)
        .lower(state, video, key)
        .compile(compiler_options=low_memory_compiler_options(jax.default_backend()))
    )
    reset_peak()
    before = memory_kib("VmRSS")

    def trained() -> Any:
        nonlocal state
        state, metrics = train(state, video, key)
        return metrics

    works = {
        "encode": lambda: encode(variables, video),
        "decode": lambda: decode(variables, tokens),
        "train": trained,
    }
    for name in WORKS:
        if name == "train":
            variables = None  # the step overwrites them
        seconds = []
        reset_peak()
        for _ in range(runs + 1):
            start = time.perf_counter()
            jax.block_until_ready(works[name]())
            seconds.append(time.perf_counter() - start)
        print(
            json.dumps(
                {
                    "work": name,
                    "seconds": min(seconds[1:]),
                    "peak_kib": memory_kib("VmHWM") - before,
                }
            ),
            flush=True,
        )


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(function).lower(*arguments).compile()


def lines_of(command: list[str]) -> dict[str, dict]:
    """The JSON lines of a worker, by the kind of work."""
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ).stdout
    entries = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {entry["work"]: entry for entry in entries}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", default="", help="checkout of the official program")
    parser.add_argument("--official-python", default=sys.executable)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--codebook-size", type=int, default=16_384)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ours", action="store_true", help="only the worker of this project")
    options = parser.parse_args()

    values = base.get_config()
    values.data.frames, values.data.resolution = options.frames, options.side
    values.tokenizer.update(
        {
            "hidden": options.hidden,
            "codebook_size": options.codebook_size,
            "dtype": options.dtype,
        }
    )
    values.tokenizer.training.batch_size = options.batch
    values.tokenizer.training.ema_decay = 0.0  # the official program averages no weights
    config = from_config_dict(values)
    if options.ours:
        measure_ours(config, options.runs)
        return

    arguments = [word for word in sys.argv[1:] if word != "--ours"]
    ours = lines_of([sys.executable, "-m", "benchmarks.tokenizer", "--ours", *arguments])
    official = {}
    if options.official:
        settings = {
            "batch": options.batch,
            "frames": options.frames,
            "side": options.side,
            "hidden": options.hidden,
            "codebook_size": options.codebook_size,
            "width": config.tokenizer.code_width,
            "compression": config.tokenizer.compression,
            "runs": options.runs,
            "device": "cpu",
        }
        official = lines_of(
            [
                options.official_python,
                "-m",
                "benchmarks.official_tokenizer",
                options.official,
                json.dumps(settings),
            ]
        )
    frames = options.batch * options.frames
    for work in WORKS:
        line = (
            f"{work:7s} ours {frames / ours[work]['seconds']:7.2f} frames/s, peak "
            f"{ours[work]['peak_kib'] / 2**20:.2f} GiB"
        )
        if official:
            theirs = official[work]
            line += (
                f"; official {frames / theirs['seconds']:7.2f} frames/s, peak "
                f"{theirs['peak_kib'] / 2**20:.2f} GiB; ratio "
                f"{theirs['seconds'] / ours[work]['seconds']:.2f}"
            )
        print(line, flush=True)


if __name__ == "__main__":
    main()
