"""The cost of a train step and of decoding from 16 to 1,024 frames, beside attention of all tokens
to all, with fitted exponents.

    python -m benchmarks.scaling --results scaling.json       (draws docs/scaling.png)

`--only "train step, small"` measures only rows with these words. `--results` is a file for the
measurements; those of earlier calls in it are not repeated.

Paper size (width 1,024, 24 layers, 256 latents, 128x128): operations of the matrix products, from
the traced programs; memory beyond weights, averages and moments, from the compiler's analysis for
this machine, in float32 with batch 1 and the remat of ucf128. Decoding takes the 160 passes of
ucf128; its memory is that of a pass that predicts all tokens. Small (width 128, 6 layers, 64
latents): seconds on this machine, for decoding in 4 passes; attention of all tokens to all as far
as its scores fit into memory. An exponent is the slope of a straight line through the logarithms
from 64 frames (4,096 tokens) on, where the 256 latents matter little; "from 16" is through all
lengths. Takes a quarter of an hour on two cores.
"""

import argparse
import dataclasses
import functools
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from configs import ucf128
from mebt_jax.aot import programs
from mebt_jax.config import Config, from_config_dict
from mebt_jax.methods import METHODS
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.masked_method import MaskedMethod
from mebt_jax.methods.sampling_keys import clip_keys
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import new_state

ROOT = Path(__file__).parents[1]
FRAMES = (16, 32, 64, 128, 256, 512, 1024)
LONG = 64  # exponents are fitted from here on
SMALL = {
    "width": 128,
    "heads": 2,
    "num_latents": 64,
    "layers": ("encode", "latent", "encode", "decode", "update", "decode"),
}
KINDS = {"MeBT": None, "full attention": ("maskgit",)}
SCORE_BYTES = 5e8  # attention of all to all is timed if its scores take at most this
# Compiler options for programs that are never run.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def config_of(frames: int, kind: str, small: bool) -> Config:
    """ucf128 at another length; for full attention with as many blocks in which all tokens attend
    to all.
    """
    values = ucf128.get_config()
    values.data.frames = frames
    values.method.interval_schedule = "longest"
    values.backbone.dtype = "float32"
    values.prior.training.batch_size = values.sample.batch_size = 1
    if small:
        values.backbone.update(SMALL)
        values.tokenizer.codebook_size = 1024
    if KINDS[kind]:
        values.backbone.layers = KINDS[kind] * len(values.backbone.layers)
    # A short plan: a few drafts, which cost as much as other passes.
    values.decoding.update({"draft_steps": 4, "bootstrap_steps": 0, "revise_rounds": 0, "top_k": 0})
    return from_config_dict(values)


# ---- from the programs ---------------------------------------------------------------------------


def train_flops(config: Config) -> int:
    return train_program(config).flops


@functools.cache
def train_program(config: Config) -> programs.Program:
    (program,) = programs.prior_step(config, one_device(config))
    return program


def train_memory(config: Config) -> int:
    """Bytes beyond weights, their averages and moments, by the compiler's analysis; includes the
    gradients.
    """
    return train_program(config).traced.lower().compile(QUICK).memory_analysis().temp_size_in_bytes


def sample_memory(config: Config) -> int:
    """Bytes beyond the weights of the pass with the most operations: tokens, cached keys and
    values, temporaries.
    """
    passes = programs.sampling(config, one_device(config))[:-1]  # without decoding to pixels
    largest = max(passes, key=lambda program: program.flops)
    memory = largest.traced.lower().compile(QUICK).memory_analysis()
    return (
        memory.argument_size_in_bytes
        - weight_bytes(config)
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def weight_bytes(config: Config) -> int:
    _, abstract = abstract_prior(method_of(config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))


def sample_flops(config: Config) -> int:
    """Operations of the official 160 passes of ucf128 over one clip."""
    decoding = dataclasses.replace(config.decoding, preset="ucf128")
    method = method_of(dataclasses.replace(config, decoding=decoding))
    plain = "maskgit" in config.backbone.layers
    return cost.plan_flops(*abstract_prior(method), method.plan(), config.grid, plain=plain)


def method_of(config: Config) -> MaskedMethod:
    return METHODS[config.method.kind].from_config(config)


def one_device(config: Config) -> jax.sharding.Mesh:
    return mesh_lib.make_mesh(config.mesh, jax.devices()[:1])


# ---- by the clock --------------------------------------------------------------------------------


def train_seconds(config: Config) -> float:
    program = train_program(config)
    compiled = program.traced.lower().compile()
    method = method_of(config)
    _, abstract = abstract_prior(method)
    params = weights(abstract)
    optimizer = make_optimizer(config.prior.training, params)
    state = jax.device_put(new_state(params, optimizer, ema=True))
    contexts = jnp.array([method.programs()[-1].contexts], jnp.int32)
    draw = (jnp.int32(config.grid[0]), contexts, math.prod(config.grid) - contexts)
    tokens = jnp.zeros((1, *config.grid), jnp.int32)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(
            compiled(state, tokens, None, draw, jax.random.key(0))
        )
        seconds.append(time.perf_counter() - start)
    assert np.isfinite(metrics["loss"])
    return min(seconds)


def sample_seconds(config: Config) -> float:
    method = method_of(config)
    graphdef, abstract = abstract_prior(method)
    run = functools.partial(
        decode.decode,
        graphdef,
        weights(abstract),
        method.plan(),
        config.grid,
        clip_keys(0, jnp.arange(1)),
        block=config.method.loss_block,
    )
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def weights(abstract: nnx.State) -> nnx.State:
    """Small random numbers in the shapes of the parameters; the time does not depend on them."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), abstract
    )


# ---- table and picture ---------------------------------------------------------------------------


def exponent(costs: dict[int, float], start: int) -> float:
    """Slope of the line through (log frames, log cost) from `start` frames on; nan with fewer than
    two points.
    """
    points = [
        (math.log(frames), math.log(value))
        for frames, value in costs.items()
        if frames >= start and value
    ]
    return float(np.polyfit(*zip(*points), 1)[0]) if len(points) > 1 else math.nan


def fits(config: Config) -> bool:
    tokens = math.prod(config.grid)
    return (
        "maskgit" not in config.backbone.layers
        or 3 * 4 * config.backbone.heads * tokens**2 < SCORE_BYTES
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--only", default="", help="measure only rows with these words")
    parser.add_argument("--results", type=Path, help="JSON file of the measurements, to go on from")
    options = parser.parse_args()
    path = options.results
    measured = json.loads(path.read_text()) if path and path.exists() else {}
    measures = {  # title, unit -> (function, whether of the small model)
        ("train step, paper size", "TFLOP"): (lambda c: train_flops(c) / 1e12, False),
        ("decoding, paper size", "TFLOP"): (lambda c: sample_flops(c) / 1e12, False),
        ("train step, small", "seconds"): (train_seconds, True),
        ("decoding, small", "seconds"): (sample_seconds, True),
        ("train step, paper size", "GiB"): (lambda c: train_memory(c) / 2**30, False),
        ("decoding, paper size", "GiB"): (lambda c: sample_memory(c) / 2**30, False),
    }
    results = {}
    for (title, unit), (measure, small) in measures.items():
        for kind in KINDS:
            costs = {}
            for frames in options.frames:
                config, name = config_of(frames, kind, small), f"{title}, {unit}, {kind}, {frames}"
                if (
                    name not in measured
                    and options.only in f"{title}, {unit}, {kind}"
                    and (unit != "seconds" or fits(config))
                ):
                    measured[name] = measure(config)
                    print(f"{name}: {measured[name]:.4g}", flush=True)
                    if path:
                        path.write_text(json.dumps(measured, indent=1))
                if name in measured:
                    costs[frames] = measured[name]
            results[title, unit, kind] = costs
    print_table(results, options.frames)
    draw(results, ROOT / "docs" / "scaling.png")


def print_table(results: dict[tuple[str, str, str], dict[int, float]], frames: list[int]) -> None:
    print(
        "| | | "
        + " | ".join(map(str, frames))
        + f" | exponent from {LONG} | from 16 |\n"
        + "|---" * (len(frames) + 4)
        + "|"
    )
    for (title, unit, kind), costs in results.items():
        cells = " | ".join(f"{costs[length]:.3g}" if length in costs else "" for length in frames)
        print(
            f"| {title}, {unit} | {kind} | {cells} | {exponent(costs, LONG):.2f} | "
            f"{exponent(costs, 0):.2f} |"
        )


def draw(results: dict[tuple[str, str, str], dict[int, float]], path: Path) -> None:
    titles = dict.fromkeys((title, unit) for (title, unit, _), costs in results.items() if costs)
    # Train steps above, decoding below.
    order = sorted(titles, key=lambda title: not title[0].startswith("train step"))
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for i, (title, unit) in enumerate(order):
        axes = figure.add_subplot(2, 3, i + 1)
        for kind, marker in zip(KINDS, "os"):
            costs = results[title, unit, kind]
            slope = exponent(costs, LONG)  # nan with fewer than two lengths
            label = kind if math.isnan(slope) else f"{kind}, exponent {slope:.2f}"
            axes.plot(list(costs), list(costs.values()), marker=marker, label=label)
        axes.set(xscale="log", yscale="log", title=title, xlabel="frames", ylabel=unit)
        axes.set_xticks(FRAMES, [str(length) for length in FRAMES], fontsize=7)
        axes.minorticks_off()
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    print(f"drew {path}")


if __name__ == "__main__":
    main()
