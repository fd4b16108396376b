"""What a train step and decoding cost from 16 to 1,024 frames, beside attention of all tokens to
all, with fitted exponents.

    python -m benchmarks.scaling --keep scaling.json       (draws docs/scaling.png)

`--only "train step, small"` measures one of the titles, and `--keep` holds what earlier calls
found, to go on from.

Paper size (width 1,024, 24 layers, 256 latents, 128x128): operations of the matrix products from
the traced programs, and memory beyond weights, averages and moments from the compiler's analysis
for this machine, float32, batch 1, remat as in ucf128; of decoding in 160 passes as ucf128 does it,
memory of a pass that predicts all tokens. Small (width 128, 6 layers, 64 latents): seconds on this
machine, of decoding in 4 passes; attention of all tokens to all as far as its scores fit. The
exponents are slopes of a straight line through the logarithms from 64 frames on (4,096 tokens),
where the 256 latents no longer matter much; "from 16" is through all. Takes a quarter of an hour of
two cores.
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
import matplotlib
import numpy as np
from flax import nnx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]

from configs import ucf128
from mebt_jax.aot import programs
from mebt_jax.config import Config, from_config_dict
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.plan import build_plan
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import new_state
from mebt_jax.stages import prior

FRAMES = (16, 32, 64, 128, 256, 512, 1024)
LONG = 64  # exponents are fitted from here on
SMALL = {"width": 128, "heads": 2, "latents": 64}
KINDS = {"MeBT": None, "full attention": ("maskgit",)}
SCORE_BYTES = 5e8  # attention of all to all is timed as long as its scores take no more
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}  # for what is compiled and never run


def config_of(frames: int, kind: str, small: bool) -> Config:
    """ucf128 at another length; with full attention as many blocks in which all tokens attend to
    all.
    """
    values = ucf128.get_config()
    values.data.frames = frames
    values.masking.interval_schedule = "longest"
    values.transformer.dtype = "float32"
    values.transformer.training.batch_size = 1
    if small:
        values.transformer.update(SMALL)
        values.transformer.layers = ("encode", "latent", "encode", "decode", "update", "decode")
        values.tokenizer.codes = 1024
    if KINDS[kind]:
        values.transformer.layers = KINDS[kind] * len(values.transformer.layers)
    # A short plan: a few drafts, whose cost is what all passes have in common.
    values.sample.update(
        {"draft_steps": 4, "bootstrap_steps": 0, "revise_rounds": 0, "top_k": 0, "batch_size": 1}
    )
    return from_config_dict(values)


# ---- from the programs ---------------------------------------------------------------------------


def train_flops(config: Config) -> int:
    return train_program(config).flops


@functools.cache
def train_program(config: Config) -> programs.Program:
    (program,) = programs.transformer_step(config, one_device(config))
    return program


def train_memory(config: Config) -> int:
    """Bytes beyond weights, their averages and moments, by the compiler's analysis; gradients are a
    part of them.
    """
    return train_program(config).traced.lower().compile(QUICK).memory_analysis().temp_size_in_bytes


def sample_memory(config: Config) -> int:
    """Bytes beyond the weights of the pass with the most to compute: tokens, cached keys and
    values, temporaries.
    """
    passes = programs.sampling(config, one_device(config))[:-1]  # without the way to pixels
    found = max(passes, key=lambda one: one.flops).traced.lower().compile(QUICK).memory_analysis()
    return (
        found.argument_size_in_bytes
        - weight_bytes(config)
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )


def weight_bytes(config: Config) -> int:
    _, abstract = prior.abstract_transformer(config)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))


def sample_flops(config: Config) -> int:
    """Of the official 160 passes of ucf128 over one clip."""
    values = dataclasses.replace(
        config.sample, bootstrap_steps=64, draft_steps=32, revise_rounds=2, revise_partitions=32
    )
    plan = build_plan(values, math.prod(config.grid))
    return cost.plan_flops(
        config.transformer,
        config.tokenizer.codes,
        plan,
        plain="maskgit" in config.transformer.layers,
    )


def one_device(config: Config) -> jax.sharding.Mesh:
    return mesh_lib.make_mesh(config.mesh, jax.devices()[:1])


# ---- on the clock --------------------------------------------------------------------------------


def train_seconds(config: Config) -> float:
    program = train_program(config)
    compiled = program.traced.lower().compile()
    graphdef, abstract = prior.abstract_transformer(config)
    params = weights(abstract)
    optimizer = make_optimizer(config.transformer.training, params)
    state = jax.device_put(new_state(params, optimizer, ema=True))
    tokens = math.prod(config.grid)
    half = jnp.array(
        [tokens // 8], jnp.int32
    )  # the most contexts that leave this shape the most targets
    codes = jnp.zeros((1, *config.grid), jnp.int32)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(
            compiled(
                state, codes, jnp.int32(config.grid[0]), half, tokens - half, jax.random.key(0)
            )
        )
        seconds.append(time.perf_counter() - start)
    assert np.isfinite(metrics["loss"])
    return min(seconds)


def sample_seconds(config: Config) -> float:
    graphdef, abstract = prior.abstract_transformer(config)
    plan = build_plan(config.sample, math.prod(config.grid))
    run = functools.partial(
        decode.decode,
        graphdef,
        weights(abstract),
        plan,
        config.grid,
        decode.clip_keys(0, jnp.arange(1)),
        block=config.transformer.loss_block,
    )
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def weights(abstract: nnx.State) -> nnx.State:
    """Small numbers in the shapes of the parameters; what they are does not change the time."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), abstract
    )


# ---- what is shown -------------------------------------------------------------------------------


def exponent(found: dict[int, float], start: int) -> float:
    """Slope of the line through (log frames, log cost) from `start` frames on; nan with fewer than
    two points.
    """
    points = [
        (math.log(frames), math.log(value))
        for frames, value in found.items()
        if frames >= start and value
    ]
    return float(np.polyfit(*zip(*points), 1)[0]) if len(points) > 1 else math.nan


def fits(config: Config) -> bool:
    tokens = math.prod(config.grid)
    return (
        "maskgit" not in config.transformer.layers
        or 3 * 4 * config.transformer.heads * tokens**2 < SCORE_BYTES
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--only", default="", help="measure nothing whose title lacks this")
    parser.add_argument("--keep", type=Path, help="a JSON file")
    asked = parser.parse_args()
    kept = json.loads(asked.keep.read_text()) if asked.keep and asked.keep.exists() else {}
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
            found = {}
            for frames in asked.frames:
                config, name = config_of(frames, kind, small), f"{title}, {unit}, {kind}, {frames}"
                if (
                    name not in kept
                    and asked.only in f"{title}, {unit}, {kind}"
                    and (unit != "seconds" or fits(config))
                ):
                    kept[name] = measure(config)
                    print(f"{name}: {kept[name]:.4g}", flush=True)
                    if asked.keep:
                        asked.keep.write_text(json.dumps(kept, indent=1))
                if name in kept:
                    found[frames] = kept[name]
            results[title, unit, kind] = found
    print_table(results, asked.frames)
    draw(results, ROOT / "docs" / "scaling.png")


def print_table(results: dict[tuple[str, str, str], dict[int, float]], frames: list[int]) -> None:
    print(
        "| | | "
        + " | ".join(map(str, frames))
        + f" | exponent from {LONG} | from 16 |\n"
        + "|---" * (len(frames) + 4)
        + "|"
    )
    for (title, unit, kind), found in results.items():
        cells = " | ".join(f"{found[one]:.3g}" if one in found else "" for one in frames)
        print(
            f"| {title}, {unit} | {kind} | {cells} | {exponent(found, LONG):.2f} | "
            f"{exponent(found, 0):.2f} |"
        )


def draw(results: dict[tuple[str, str, str], dict[int, float]], path: Path) -> None:
    titles = list(
        dict.fromkeys((title, unit) for (title, unit, _), found in results.items() if found)
    )
    figure, all_axes = plt.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
    order = sorted(
        titles, key=lambda one: one[0].split(",")[0] != "train step"
    )  # train steps above, decoding below
    for axes in all_axes.flat[len(order) :]:
        axes.remove()
    for axes, (title, unit) in zip(all_axes.flat, order):
        for kind, marker in zip(KINDS, "os"):
            found = results[title, unit, kind]
            slope = exponent(found, LONG)  # nan with fewer than two lengths
            label = kind if math.isnan(slope) else f"{kind}, exponent {slope:.2f}"
            axes.plot(list(found), list(found.values()), marker=marker, label=label)
        axes.set(xscale="log", yscale="log", title=title, xlabel="frames", ylabel=unit)
        axes.set_xticks(FRAMES, [str(one) for one in FRAMES], fontsize=7)
        axes.minorticks_off()
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    print(f"drew {path}")


if __name__ == "__main__":
    main()
