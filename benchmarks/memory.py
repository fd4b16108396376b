"""Memory and time of the prior's train step by remat policy.

    python -m benchmarks.memory [--config=ucf128] [--dtype=float32] [--policies=none,full,...]
    [--batch=1] [--time]

Without --time the step of the whole model is compiled for this machine, and the figures are those
of the compiler's memory analysis; nothing runs. They are the most that any StepShape of the config
needs beyond parameters, gradients and optimizer state. With --time the same step runs with fewer
layers and frames (--frames), the policies in turn, and the least time of each is printed.
"""

import argparse
import dataclasses
import importlib
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sampling import SHORT_LAYERS
from mebt_jax.aot import programs
from mebt_jax.backbones.mebt.stack import REMAT_POLICIES
from mebt_jax.config import Config, from_config_dict
from mebt_jax.methods import METHODS
from mebt_jax.methods.masked.shape_buckets import StepShape, all_shapes
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import TrainState, new_state

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="ucf128")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--policies", default=",".join(REMAT_POLICIES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--frames", type=int, default=32, help="of the clips, with --time")
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
            f"{policy:22s} {config.backbone.dtype}: "
            + ", ".join(
                f"C={shape.contexts} M={shape.targets}: {need / MIB:.0f} MiB"
                for shape, need in needs.items()
            ),
            flush=True,
        )


def load(arguments: argparse.Namespace) -> Config:
    values = importlib.import_module(f"configs.{arguments.config}").get_config()
    values.backbone.dtype = arguments.dtype
    values.prior.training.batch_size = arguments.batch
    values.prior.training.microbatches = 1
    values.mesh.update({"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1})
    if arguments.time:
        values.data.frames = arguments.frames
        values.backbone.layers = SHORT_LAYERS
    return from_config_dict(values)


def with_remat(config: Config, policy: str) -> Config:
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, remat=policy))


def hardest(config: Config) -> list[StepShape]:
    """Of the shapes of whole clips, those with the most targets and with the most contexts."""
    shapes = [
        shape
        for shape in all_shapes(config.method, config.grid)
        if shape.interval == config.grid[0]
    ]
    return [
        max(shapes, key=lambda s: (s.targets, s.contexts)),
        max(shapes, key=lambda s: (s.contexts, s.targets)),
    ]


def compiled_step(config: Config, shape: StepShape) -> jax.stages.Compiled:
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    (program,) = programs.prior_step(config, mesh, shape)
    return program.traced.lower().compile()


def abstract_state(config: Config) -> TrainState:
    training = config.prior.training
    _, params = abstract_prior(METHODS[config.method.kind].from_config(config))
    optimizer = make_optimizer(training, params)
    return jax.eval_shape(lambda p: new_state(p, optimizer, ema=training.ema_decay > 0), params)


def beyond_state(config: Config, shape: StepShape) -> int:
    """Bytes of temporaries by the compiler's analysis, less one set of gradients."""
    params = jax.tree.leaves(abstract_state(config).params)
    gradients = sum(leaf.size * leaf.dtype.itemsize for leaf in params)
    return compiled_step(config, shape).memory_analysis().temp_size_in_bytes - gradients


def print_times(config: Config, policies: list[str], repeats: int) -> None:
    shape, batch = hardest(config)[0], config.prior.training.batch_size
    steps = {policy: compiled_step(with_remat(config, policy), shape) for policy in policies}
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: (
            jnp.asarray(rng.normal(0, 0.02, x.shape), x.dtype) if x.ndim else jnp.zeros((), x.dtype)
        ),
        abstract_state(config),
    )
    state = state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    tokens = jnp.asarray(
        rng.integers(config.tokenizer.codebook_size, size=(batch, *config.grid)), jnp.int32
    )
    contexts = jnp.full(batch, shape.contexts, jnp.int32)
    draw = (jnp.int32(config.grid[0]), contexts, math.prod(config.grid) - contexts)
    times: dict[str, list[float]] = {policy: [] for policy in policies}
    # In turn, so that other load on the machine slows all of them alike.
    for repeat in range(repeats + 1):
        for policy, step in steps.items():
            start = time.perf_counter()
            state, metrics = step(state, tokens, None, draw, jax.random.key(0))
            jax.block_until_ready(metrics)
            if repeat:  # the first one is slower
                times[policy].append(time.perf_counter() - start)
    fastest = min(min(values) for values in times.values())
    for policy, values in times.items():
        print(
            f"{policy:22s} {config.backbone.dtype}: {min(values):.2f} s a step, "
            f"{min(values) / fastest:.3f} of the fastest "
            f"(C={shape.contexts} M={shape.targets}, {len(config.backbone.layers)} layers)",
            flush=True,
        )


if __name__ == "__main__":
    main()
