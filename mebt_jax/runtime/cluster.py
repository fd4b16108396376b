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
    """Connects this process to the others of a run. On one machine without a launcher it does
    nothing.

    Call it before any other use of JAX.

    Args:
        coordinator: host:port of process 0; "" takes the variable JAX_COORDINATOR_ADDRESS, or else
            what the launcher set in the environment.
        num_processes: 0 takes the variable JAX_NUM_PROCESSES, or else what the launcher set.
        process_id: -1 takes the variable JAX_PROCESS_ID, or else what the launcher set.

    Raises:
        UserError: the coordinator cannot be reached, or the number of processes or of this one
            does not fit.
    """
    environment = os.environ
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    launched = launched_in_parallel(environment)
    if coordinator:
        # JAX itself does not read these two variables.
        num_processes = num_processes or int(environment.get("JAX_NUM_PROCESSES", 0))
        process_id = process_id if process_id >= 0 else int(environment.get("JAX_PROCESS_ID", -1))
        if not (launched and num_processes == 0) and not 0 <= process_id < num_processes:
            raise UserError(
                f"The coordinator {coordinator} needs the number of processes and the number of "
                f"this one, counted from 0, but they are {num_processes} and {process_id}; give "
                "--num_processes and --process_id."
            )
        numbers = (
            {"num_processes": num_processes, "process_id": process_id} if num_processes else {}
        )
        _initialize(coordinator_address=coordinator, **numbers)
    elif launched:
        _initialize()
    elif _on_tpu_vm(environment):
        try:
            # Only the metadata server of the cloud knows whether there are other hosts.
            jax.distributed.initialize()
        except ValueError:  # JAX found no cluster: this host is the only one
            pass


def leave(error: Exception) -> None:
    """Ends this process after a failure that another process may have caused. In a run of one
    process it raises `error` again.

    It closes nothing: closing a checkpoint waits for all processes, and would wait for a dead one
    too.
    """
    if jax.process_count() == 1:
        raise error
    reason = str(error).strip().splitlines()[0][:200]
    print(
        f"Process {jax.process_index()} ends because another process of this run may have ended "
        f"({reason}); the same command on all of them goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def launched_in_parallel(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes."""
    # initialize() raises where there is no cluster, and a run of one process does not need it.
    tasks = max(
        int(environment.get(name, "1")) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    )
    launched = "SLURM_STEP_NODELIST" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    # GKE sets the host names and the number of slices.
    tpu_hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return (
        (launched and tasks > 1)
        or len(tpu_hosts) > 1
        or int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1
    )


def _on_tpu_vm(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    # On a queued TPU slice no variable says that there are other hosts.
    chips = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    platforms = environment.get("JAX_PLATFORMS", "tpu").split(",")
    return bool(chips) and "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def _initialize(**arguments: object) -> None:
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"The processes of this run could not be connected: {reason}; check that all of them "
            "start, each with its own number, and reach the coordinator."
        ) from error
