"""`python -m mebt_jax.aot --config=configs/ucf128.py --topology=v5e:4x4 [--step=prior]
[--config.mesh.fsdp=16 ...]`

Compiles what a step of a run executes for TPUs that need not be there: "prior" and "tokenizer" are
train steps, "sample" draws a batch, "evaluate" measures a batch of real and a batch of generated
clips. Prints the memory of a chip, what is computed and moved, and the least time by the chip's
figures. If a program does not fit, the exit status is 1 and the output says what to change. Needs
libtpu: pip install 'mebt_jax[aot]'.
"""

import os

# Before JAX is imported: no query of a metadata server and no log files. The compilation cache is
# off because such programs can be written to it but not read.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_LOG_DIR="disabled",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    JAX_ENABLE_COMPILATION_CACHE="false",
)

import sys

from absl import app, flags

from mebt_jax import main as main_lib
from mebt_jax.aot import chips as chips_lib
from mebt_jax.aot import programs, roofline
from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError

TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:4x4", "TPU generation and shape, such as v5e:4x4 or v5p:2x2x1."
)
SLICES = flags.DEFINE_integer(
    "slices", 1, "Slices of this topology, connected by the network of the data center."
)
STEP = flags.DEFINE_string("step", "prior", f"What to compile: one of {', '.join(programs.STEPS)}.")
EFFORT = flags.DEFINE_float(
    "effort", 0.0, "Of the compiler, from -1 (quick, with a worse schedule) to 1."
)


def main(argv: list[str]) -> None:
    config = from_config_dict(main_lib.CONFIG.value)
    programs.check_step(STEP.value)
    chip = chips_lib.of_topology(TOPOLOGY.value)
    devices = chips_lib.devices(TOPOLOGY.value, SLICES.value)
    print(
        f"{config.name}, {STEP.value}, {SLICES.value} x {TOPOLOGY.value}, {len(devices)} chips",
        flush=True,
    )
    reports = []
    for program in programs.programs(STEP.value, config, devices):
        try:
            reports.append(roofline.compile_report(program, chip, SLICES.value, EFFORT.value))
        except roofline.DoesNotFit as error:
            print(error)
            sys.exit(1)
    print("\n".join(roofline.lines(reports)))


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=main_lib.parse_flags)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
