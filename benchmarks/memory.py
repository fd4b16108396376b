"""Memory and time of the transformer's train step by remat policy.

    python -m benchmarks.memory [--config=ucf128] [--dtype=float32] [--policies=none,dots,...]
    [--batch=1] [--time]

Without --time the real step of the whole model is compiled for this machine and its plan of memory
read; nothing is run. What counts is the most that any StepShape of the config needs beyond
parameters, gradients and optimizer state. With --time the same step runs on fewer layers and frames
(--layers, --frames), the policies in turn, and the least time of each is printed.
"""

import argparse
import dataclasses
import functools
import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from mebt_jax.config import REMAT_POLICIES, Config, from_config_dict
from mebt_jax.methods.masked.masking import MaskDraw
from mebt_jax.methods.masked.shape_buckets import StepShape, all_shapes
from mebt_jax.runtime.compilation import frugal_options
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import TrainState, new_state
from mebt_jax.stages import prior

# Of full width, with every kind of layer in a repeated unit and alone, small enough to be run here.
FEW_LAYERS = ("encode", "latent") * 2 + ("encode",) + ("decode", "update") * 2 + ("decode",)
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ucf128")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--policies", default=",".join(REMAT_POLICIES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=4)
    arguments = parser.parse_args()
    config = load(arguments)
    policies = arguments.policies.split(",")
    if arguments.time:
        print_times(config, policies, arguments.repeats)
        return
    for policy in policies:
        needs = {
            shape: beyond_state(with_remat(config, policy), shape) for shape in hardest(config)
        }
        print(
            f"{policy:12s} {config.transformer.dtype}: "
            + ", ".join(
                f"C={shape.contexts} M={shape.targets}: {need / MIB:.0f} MiB"
                for shape, need in needs.items()
            ),
            flush=True,
        )


def load(arguments: argparse.Namespace) -> Config:
    values = importlib.import_module(f"configs.{arguments.config}").get_config()
    values.transformer.dtype = arguments.dtype
    values.transformer.training.batch_size, values.transformer.training.accumulation = (
        arguments.batch,
        1,
    )
    if arguments.time:
        values.data.frames = arguments.frames
        values.transformer.layers = FEW_LAYERS
    return from_config_dict(values)


def with_remat(config: Config, policy: str) -> Config:
    return dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, remat=policy)
    )


def hardest(config: Config) -> list[StepShape]:
    """Of the whole clip, the shapes with the most targets and with the most contexts."""
    shapes = [
        shape
        for shape in all_shapes(config.masking, config.grid)
        if shape.interval == config.grid[0]
    ]
    return [
        max(shapes, key=lambda s: (s.targets, s.contexts)),
        max(shapes, key=lambda s: (s.contexts, s.targets)),
    ]


def train_step(config: Config, shape: StepShape) -> tuple[jax.stages.Wrapped, TrainState]:
    """The jitted step and its abstract state."""
    graphdef, params = prior.abstract_transformer(config)
    optimizer = make_optimizer(config.transformer.training, params)
    state = jax.eval_shape(
        lambda p: new_state(p, optimizer, ema=config.transformer.training.ema_decay > 0), params
    )
    step = functools.partial(
        prior.train_step,
        graphdef=graphdef,
        optimizer=optimizer,
        config=config.transformer,
        shape=shape,
    )
    return jax.jit(
        step, donate_argnums=0, compiler_options=frugal_options(jax.default_backend())
    ), state


def beyond_state(config: Config, shape: StepShape) -> int:
    """Bytes of temporaries in the compiled plan less one set of gradients."""
    step, state = train_step(config, shape)
    batch = config.transformer.training.batch_size
    integers = jax.ShapeDtypeStruct((batch,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = step.lower(
        state,
        jax.ShapeDtypeStruct((batch, *config.grid), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        integers,
        integers,
        key,
    ).compile()
    gradients = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return compiled.memory_analysis().temp_size_in_bytes - gradients


def print_times(config: Config, policies: list[str], repeats: int) -> None:
    shape = hardest(config)[0]
    batch = config.transformer.training.batch_size
    steps, state = {}, None
    for policy in policies:
        steps[policy], abstract = train_step(with_remat(config, policy), shape)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: (
            jnp.asarray(rng.normal(0, 0.02, x.shape), x.dtype) if x.ndim else jnp.zeros((), x.dtype)
        ),
        abstract,
    )
    state = state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    codes = jnp.asarray(rng.integers(config.tokenizer.codes, size=(batch, *config.grid)), jnp.int32)
    draw = MaskDraw(
        shape,
        config.grid[0],
        np.full(batch, shape.contexts, np.int32),
        np.full(batch, int(np.prod(config.grid)) - shape.contexts, np.int32),
    )
    times: dict[str, list[float]] = {policy: [] for policy in policies}
    for repeat in range(
        repeats + 1
    ):  # in turn, so that other load on the machine falls on all of them alike
        for policy, step in steps.items():
            start = time.perf_counter()
            state, metrics = step(
                state,
                codes,
                jnp.int32(draw.interval),
                draw.num_context,
                draw.num_targets,
                jax.random.key(0),
            )
            jax.block_until_ready(metrics)
            if repeat:  # the first one compiles
                times[policy].append(time.perf_counter() - start)
    fastest = min(min(values) for values in times.values())
    for policy, values in times.items():
        print(
            f"{policy:12s} {config.transformer.dtype}: {min(values):.2f} s a step, "
            f"{min(values) / fastest:.3f} of the fastest "
            f"(C={shape.contexts} M={shape.targets}, {len(config.transformer.layers)} layers)",
            flush=True,
        )


if __name__ == "__main__":
    main()
