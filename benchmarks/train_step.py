"""Time and memory of the transformer's train step beside the official program's, on the same
machine in the same run.

    python -m benchmarks.train_step --official=CHECKOUT --official-python=PYTHON [--frames 16 128]
    [--layers=24] [--remat=block]

CHECKOUT is a checkout of github.com/Ugness/MeBT, PYTHON an interpreter with torch, numpy and
einops. Both programs have the same weights, predict the same number of targets from as many
contexts, and take whole steps in turn: loss, accuracy, gradients, AdamW, and ours its clipping and
averages too. The least time of each counts, without compilation: by the clock, and of the
processor, which other programs hardly change. Memory is the peak of the process beyond weights,
gradients, averages and moments. Float32; dropout is off.
"""

import argparse
import functools
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.official_sampler import memory_kib, random_weight, reset_peak
from benchmarks.sampling import SHORT_LAYERS, OfficialProcess
from configs import ucf128
from mebt_jax.config import REMAT_POLICIES, Config, from_config_dict
from mebt_jax.interop.mebt_weights import transformer_from_official
from mebt_jax.methods.masked.shape_buckets import StepShape, all_shapes
from mebt_jax.runtime.compilation import frugal_options
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import new_state
from mebt_jax.stages import prior

LAYERS = {
    24: None,
    10: SHORT_LAYERS,
    6: ("encode", "latent", "encode", "decode", "update", "decode"),
}  # None: as shipped


class Ours:
    """The train step of this project, asked in the same way as the official worker."""

    def __init__(self, config: Config, params: prior.nnx.State, batch: int) -> None:
        self.config, self.batch = config, batch
        graphdef, _ = prior.abstract_transformer(config)
        optimizer = make_optimizer(config.transformer.training, params)
        self.state = jax.block_until_ready(jax.device_put(new_state(params, optimizer, ema=True)))
        self.step = functools.cache(
            lambda shape: jax.jit(
                functools.partial(
                    prior.train_step,
                    graphdef=graphdef,
                    optimizer=optimizer,
                    config=config.transformer,
                    shape=shape,
                ),
                donate_argnums=0,
                compiler_options=frugal_options(jax.default_backend()),
            )
        )
        self.gradients_kib = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) // 1024

    def train_step(self, contexts: int) -> dict[str, float]:
        """Compiles if it must, then takes a step with so many contexts."""
        shape, tokens = shape_of(self.config, contexts), math.prod(self.config.grid)
        known = jnp.full(self.batch, contexts, jnp.int32)
        arguments = (
            jnp.zeros((self.batch, *self.config.grid), jnp.int32),
            jnp.int32(self.config.grid[0]),
            known,
            tokens - known,
            jax.random.key(0),
        )
        # What it begins with lies in memory whole, the step's result in its place.
        reset_peak()
        before, start, processor = memory_kib("VmRSS"), time.perf_counter(), time.process_time()
        self.state, metrics = jax.block_until_ready(self.step(shape)(self.state, *arguments))
        return {
            "seconds": time.perf_counter() - start,
            "processor": time.process_time() - processor,
            "peak_kib": memory_kib("VmHWM") - before - self.gradients_kib,
            "loss": float(metrics["loss"]),
        }


def shape_of(config: Config, contexts: int) -> StepShape:
    """The smallest slots of the config that hold so many contexts and the rest as targets."""
    tokens = math.prod(config.grid)
    fitting = [
        shape
        for shape in all_shapes(config.masking, config.grid)
        if shape.interval == config.grid[0]
        and shape.contexts >= contexts
        and shape.targets >= tokens - contexts
    ]
    return min(fitting, key=lambda shape: shape.contexts + shape.targets)


def load(frames: int, layers: int, remat: str) -> Config:
    """ucf128 at another length, in float32."""
    values = ucf128.get_config()
    values.data.frames = frames
    values.masking.interval_schedule = "longest"
    values.transformer.dtype = "float32"
    values.transformer.layers = LAYERS[layers] or values.transformer.layers
    values.transformer.remat = remat or values.transformer.remat
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
        "--contexts", type=float, nargs="+", default=[0.25, 0.5], help="shares of the tokens"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--official", required=True)
    parser.add_argument("--official-python", default=sys.executable)
    options = parser.parse_args()
    for frames in options.frames:
        measure(load(frames, options.layers, options.remat), options)


def measure(config: Config, options: argparse.Namespace) -> None:
    official = OfficialProcess(options.official_python, options.official, config, threads=0)
    weights = {name: random_weight(name, tuple(shape)) for name, shape in official.shapes.items()}
    ours = Ours(config, transformer_from_official(weights, config.transformer), options.batch)
    del weights
    tokens = math.prod(config.grid)
    for share in options.contexts:
        contexts = int(share * tokens)
        taken: dict[str, list[dict[str, float]]] = {"ours": [], "official": []}
        for _ in range(options.repeats + 1):  # in turn, so that other load falls on both
            taken["ours"].append(ours.train_step(contexts))
            answer = official.ask(do="train_step", contexts=contexts, batch=options.batch)
            # Its gradients and both moments are no temporaries.
            taken["official"].append(
                answer | {"peak_kib": answer["peak_kib"] - 3 * ours.gradients_kib}
            )
        assert np.isclose(taken["ours"][0]["loss"], taken["official"][0]["loss"], rtol=0.02), (
            "not the same model"
        )
        seconds, processor = (
            {name: min(one[clock] for one in steps[1:]) for name, steps in taken.items()}
            for clock in ("seconds", "processor")
        )
        shape = shape_of(config, contexts)
        print(
            f"{config.data.frames} frames, {len(config.transformer.layers)} layers, remat "
            f"{config.transformer.remat}, {contexts} "
            f"contexts and {tokens - contexts} targets in {shape.contexts} and {shape.targets} "
            "slots"
        )
        for name, steps in taken.items():
            peak = max(one["peak_kib"] for one in steps[1:]) / 2**20
            print(
                f"  {name:9s} {seconds[name]:7.2f} s, {seconds[name] / seconds['official']:.2f} of "
                "the official time; of the "
                f"processor {processor[name]:.2f} s, "
                f"{processor[name] / processor['official']:.2f}; {peak:.2f} GiB beyond weights, "
                f"gradients and moments; loss of the first {steps[0]['loss']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
