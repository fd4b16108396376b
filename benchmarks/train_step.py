"""Time and memory of the prior's train step beside the official program's, on the same machine in
the same run.

    python -m benchmarks.train_step --official=CHECKOUT --official-python=PYTHON [--frames 16 128]
    [--layers=24] [--remat=full]

CHECKOUT is a checkout of github.com/Ugness/MeBT, PYTHON an interpreter with torch, numpy and
einops. Both programs start from the same weights, predict the same number of targets from as many
contexts, and take whole steps in turn: loss, accuracy, gradients, AdamW, and in ours also clipping
and averages. The losses of the first step must agree. The times are the least of each, without
compilation: by the clock, and of the processor, which other programs hardly change. Memory is the
peak of the process beyond weights, gradients, averages and moments. Float32; dropout is off.
"""

import argparse
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.official_sampler import memory_kib, random_weight, reset_peak
from benchmarks.sampling import SHORT_LAYERS, OfficialProcess
from configs import ucf128
from mebt_jax.backbones.mebt.stack import REMAT_POLICIES
from mebt_jax.config import Config, from_config_dict
from mebt_jax.interop.mebt_weights import transformer_from_official
from mebt_jax.methods import METHODS
from mebt_jax.methods.masked.shape_buckets import StepShape, all_shapes
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.sharding import state_sharding
from mebt_jax.runtime.train_state import new_state
from mebt_jax.stages import prior

LAYERS = {
    24: None,  # as in the config
    10: SHORT_LAYERS,
    6: ("encode", "latent", "encode", "decode", "update", "decode"),
}


class Ours:
    """The train step of this project, with the method of the official worker."""

    def __init__(self, config: Config, params: nnx.State) -> None:
        self.config = config
        mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
        method = METHODS[config.method.kind].from_config(config)
        graphdef, _ = abstract_prior(method)
        optimizer = make_optimizer(config.prior.training, params)
        state = new_state(params, optimizer, ema=True)
        shardings = state_sharding(state, mesh, config.runtime.fsdp_min_elements)
        self.state = jax.block_until_ready(jax.device_put(state, shardings))
        self.step_of = prior.step_programs(config, method, graphdef, optimizer, shardings, mesh)
        self.gradients_kib = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) // 1024

    def train_step(self, contexts: int) -> dict[str, float]:
        """Takes a step with that many contexts; the first of a shape includes its compilation."""
        step = self.step_of(shape_of(self.config, contexts))
        batch, num_tokens = self.config.prior.training.batch_size, math.prod(self.config.grid)
        num_contexts = np.full(batch, contexts, np.int32)
        tokens = jnp.zeros((batch, *self.config.grid), jnp.int32)
        draw = (np.int32(self.config.grid[0]), num_contexts, num_tokens - num_contexts)
        key = jax.random.key(0)
        # The state is in memory before the step, and its result replaces it.
        reset_peak()
        before, start, processor = memory_kib("VmRSS"), time.perf_counter(), time.process_time()
        self.state, metrics = jax.block_until_ready(step(self.state, tokens, None, draw, key))
        return {
            "seconds": time.perf_counter() - start,
            "processor": time.process_time() - processor,
            "peak_kib": memory_kib("VmHWM") - before - self.gradients_kib,
            "loss": float(metrics["loss"]),
        }


def shape_of(config: Config, contexts: int) -> StepShape:
    """The smallest shape of the config with room for that many contexts and the other tokens as
    targets.
    """
    tokens = math.prod(config.grid)
    fitting = [
        shape
        for shape in all_shapes(config.method, config.grid)
        if shape.interval == config.grid[0]
        and shape.contexts >= contexts
        and shape.targets >= tokens - contexts
    ]
    return min(fitting, key=lambda shape: shape.contexts + shape.targets)


def load(frames: int, options: argparse.Namespace) -> Config:
    """ucf128 at another length, in float32."""
    values = ucf128.get_config()
    values.data.frames = frames
    values.method.interval_schedule = "longest"
    values.backbone.dtype = "float32"
    values.backbone.layers = LAYERS[options.layers] or values.backbone.layers
    values.backbone.remat = options.remat or values.backbone.remat
    values.prior.training.batch_size = options.batch
    return from_config_dict(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--layers", type=int, default=24, choices=tuple(LAYERS))
    parser.add_argument(
        "--remat", default="", choices=("", *REMAT_POLICIES), help="instead of that of ucf128"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--contexts", type=float, nargs="+", default=[0.25, 0.5], help="fractions of the tokens"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--official", required=True)
    parser.add_argument("--official-python", default=sys.executable)
    options = parser.parse_args()
    for frames in options.frames:
        measure(load(frames, options), options)


def measure(config: Config, options: argparse.Namespace) -> None:
    official = OfficialProcess(options.official_python, options.official, config, threads=0)
    weights = {name: random_weight(name, tuple(shape)) for name, shape in official.shapes.items()}
    ours = Ours(config, transformer_from_official(weights, config.backbone))
    del weights
    for i, fraction in enumerate(options.contexts):
        contexts = int(fraction * math.prod(config.grid))
        steps = take_steps(ours, official, contexts, options)
        if i == 0:  # later the two have been trained on different draws
            check_same_model(steps)
        report(config, contexts, steps)


def take_steps(
    ours: Ours, official: OfficialProcess, contexts: int, options: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """Figures of each step of both programs, the first with its compilation."""
    steps: dict[str, list[dict[str, float]]] = {"ours": [], "official": []}
    for _ in range(options.repeats + 1):  # in turn, so that other load slows both alike
        steps["ours"].append(ours.train_step(contexts))
        answer = official.request(do="train_step", contexts=contexts, batch=options.batch)
        # Its peak includes the gradients and both moments.
        steps["official"].append(answer | {"peak_kib": answer["peak_kib"] - 3 * ours.gradients_kib})
    return steps


def check_same_model(steps: dict[str, list[dict[str, float]]]) -> None:
    """Compares the losses of the first steps, before which both have the same weights."""
    losses = {name: taken[0]["loss"] for name, taken in steps.items()}
    if not np.isclose(losses["ours"], losses["official"], rtol=0.02):
        raise SystemExit(f"The first losses are {losses}, so the programs are not the same model.")
    print(f"losses of the first step: {losses}", flush=True)


def report(config: Config, contexts: int, steps: dict[str, list[dict[str, float]]]) -> None:
    shape, tokens = shape_of(config, contexts), math.prod(config.grid)
    print(
        f"{config.data.frames} frames, {len(config.backbone.layers)} layers, remat "
        f"{config.backbone.remat}, {contexts} contexts and {tokens - contexts} targets in "
        f"{shape.contexts} and {shape.targets} slots"
    )
    seconds, processor = (
        {name: min(step[clock] for step in taken[1:]) for name, taken in steps.items()}
        for clock in ("seconds", "processor")
    )
    for name, taken in steps.items():
        peak = max(step["peak_kib"] for step in taken[1:]) / 2**20
        print(
            f"  {name:9s} {seconds[name]:7.2f} s, {seconds[name] / seconds['official']:.2f} of "
            f"the official time; of the processor {processor[name]:.2f} s, "
            f"{processor[name] / processor['official']:.2f}; {peak:.2f} GiB beyond weights, "
            "gradients and moments",
            flush=True,
        )


if __name__ == "__main__":
    main()
