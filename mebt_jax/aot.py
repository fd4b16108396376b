"""`python -m mebt_jax.aot --config=configs/ucf128.py --topology=v5e:4x4 [--config.mesh.fsdp=16 ...]`: will it fit?

Compiles the largest program of the transformer's training for a TPU topology, without a TPU, and prints the memory of a
chip and the matrix products of a step. Exit status 1 if it does not fit. Needs libtpu: pip install 'mebt_jax[aot]'.
"""

import os

if __name__ == "__main__":  # before JAX is imported; whoever imports this file keeps its own environment
    # No query of a metadata server, no log files; the cache of compiled programs can be written but not read here.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-16",
                      TPU_WORKER_HOSTNAMES="localhost", TPU_LOG_DIR="disabled", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
                      JAX_ENABLE_COMPILATION_CACHE="false")

import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.extend import core

from mebt_jax import main as main_lib
from mebt_jax.config import Config, from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.masking.capacities import all_shapes
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import new_state
from mebt_jax.stages import transformer

TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU generation and shape, such as v5e:4x4 or v5p:2x2x1.")


def compile_train_step(config: Config, devices: Sequence[Any]) -> tuple[jax.stages.Compiled, int]:
    """The train step of the largest StepShape compiled for `devices`, and the FLOPs of its matrix products, all chips."""
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    training = config.transformer.training
    mesh_lib.check_batch_size(mesh, training.batch_size // training.accumulation, "config.transformer.training.batch_size")
    graphdef, params = transformer.abstract_transformer(config)
    optimizer = make_optimizer(training, params)
    state = jax.eval_shape(lambda p: new_state(p, optimizer, ema=training.ema_decay > 0), params)
    shardings = mesh_lib.state_sharding(state, mesh, config.runtime.fsdp_min_elements)
    largest = max(all_shapes(config.masking, config.grid), key=lambda s: (s.contexts + s.targets, s.targets))
    step = transformer.step_programs(config, graphdef, optimizer, shardings, mesh)(largest)
    counts = jax.ShapeDtypeStruct((training.batch_size,), jnp.int32)
    codes = jax.ShapeDtypeStruct((training.batch_size, *config.grid), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = step.trace(state, codes, jax.ShapeDtypeStruct((), jnp.int32), counts, counts, key)
    return traced.lower(lowering_platforms=("tpu",)).compile(), matrix_flops(traced.jaxpr.jaxpr)


def matrix_flops(jaxpr: Any) -> int:
    """FLOPs of the matrix products of a jaxpr; XLA's own count takes the body of a scan once, this one every turn."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([shape[a] for a in contracted]))
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += turns * sum(matrix_flops(inner) for inner in core.jaxprs_in_params(eqn.params))
    return total


def main(argv: list[str]) -> None:
    config = from_config_dict(main_lib.CONFIG.value)
    try:
        topology = topologies.get_topology_desc(TOPOLOGY.value, platform="tpu")
    except Exception as error:  # libtpu has one error for a name that it does not know and another where it is missing
        raise UserError(f"No topology {TOPOLOGY.value}: {str(error).splitlines()[0]}; install 'mebt_jax[aot]' and give a name "
                        f"such as v5e:4x4.") from error
    try:
        compiled, flops = compile_train_step(config, topology.devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"{config.name} does not fit {TOPOLOGY.value}: {str(error).splitlines()[0]}\nRaise "
              f"config.transformer.training.accumulation, set config.mesh.fsdp, or take more chips.", file=sys.stderr)
        sys.exit(1)
    memory = compiled.memory_analysis()
    print(f"{config.name} fits {TOPOLOGY.value} ({len(topology.devices)} devices): {memory.peak_memory_in_bytes / 2**30:.2f} GiB "
          f"peak a device, of it {memory.argument_size_in_bytes / 2**30:.2f} arguments; {flops / 1e12:.3g} TFLOP of matrix "
          f"products a step, recomputation included")


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=main_lib.parse_flags)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
