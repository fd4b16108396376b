"""Connects the processes of a run, whatever started them: a TPU pod, GKE, Slurm, Open MPI, or flags
that name a coordinator.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

from mebt_jax.errors import UserError


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Connects this process to the others of a run; on one machine with no launcher this does
    nothing.

    Must come before any other use of JAX.

    Args:
        coordinator: host:port of process 0; "" is the variable JAX_COORDINATOR_ADDRESS, or else the
            launcher's environment.
        num_processes: 0 is the variable JAX_NUM_PROCESSES, or else the launcher's environment.
        process_id: -1 is the variable JAX_PROCESS_ID, or else the launcher's environment.

    Raises:
        UserError: a coordinator without numbers that fit, or a coordinator that cannot be reached.
    """
    environment = os.environ
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    launched = launched_in_parallel(environment)
    if coordinator:
        num_processes = num_processes or int(
            environment.get("JAX_NUM_PROCESSES", 0)
        )  # JAX itself does not read these two
        process_id = process_id if process_id >= 0 else int(environment.get("JAX_PROCESS_ID", -1))
        if not (launched and num_processes == 0) and not 0 <= process_id < num_processes:
            raise UserError(
                f"The coordinator {coordinator} needs the number of processes and the number of "
                "this one, counted "
                f"from 0, but they are {num_processes} and {process_id}; give --num_processes and "
                "--process_id."
            )
        known = {"num_processes": num_processes, "process_id": process_id} if num_processes else {}
        _initialize(coordinator_address=coordinator, **known)
    elif launched:
        _initialize()
    elif _on_tpu_vm(environment):
        try:
            # only the metadata server of the cloud knows whether there are other hosts
            jax.distributed.initialize()
        except ValueError:  # what JAX raises where it finds no cluster: these chips are alone
            pass


def leave(error: Exception) -> None:
    """Ends this process after a failure that another process may have caused; with one process it
    raises `error` again.

    Nothing is closed: whatever waits for all processes, as the end of a checkpoint does, would wait
    for the dead one too.
    """
    if jax.process_count() == 1:
        raise error
    reason = str(error).strip().splitlines()[0][:200]
    print(
        f"Process {jax.process_index()} ends because another process of this run may have ended "
        f"({reason}); the same command "
        f"on all of them goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def launched_in_parallel(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes."""
    # A bare initialize() raises where there is no cluster, and a one-process allocation gains
    # nothing from it.
    tasks = max(
        int(environment.get(name, "1")) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    )
    launched = "SLURM_STEP_NODELIST" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    tpu_hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(
        ","
    )  # set by GKE, as is the number of slices
    return (
        (launched and tasks > 1)
        or len(tpu_hosts) > 1
        or int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1
    )


def _on_tpu_vm(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    # The hosts of a queued TPU slice have nothing in their environment that tells of each other.
    chips = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    asked = environment.get("JAX_PLATFORMS", "tpu").split(",")
    return bool(chips) and "tpu" in asked and importlib.util.find_spec("libtpu") is not None


def _initialize(**known: object) -> None:
    try:
        jax.distributed.initialize(**known)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "The processes of this run could not be connected: "
            f"{str(error).splitlines()[0].rstrip('.')}; check that "
            f"all of them start, each with its own number, and reach the coordinator."
        ) from error
