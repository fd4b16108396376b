import jax
import pytest

from mebt_jax.errors import UserError
from mebt_jax.runtime import cluster


@pytest.fixture
def calls(monkeypatch):
    """What jax.distributed.initialize was called with, in an environment without a launcher."""
    calls_made = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda **arguments: calls_made.append(arguments)
    )
    for name in (
        "SLURM_NTASKS",
        "SLURM_STEP_NODELIST",
        "TPU_WORKER_HOSTNAMES",
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
        "MEGASCALE_NUM_SLICES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "_on_tpu_vm", lambda environment: False)
    return calls_made


@pytest.mark.parametrize(
    ("environment", "parallel"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # an allocation without srun: this process is alone
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
            True,
        ),  # slices of one host each
    ],
)
def test_a_cluster_is_joined_only_if_a_launcher_started_it(
    environment, parallel, calls, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cluster.join()
    assert calls == ([{}] if parallel else [])


def test_a_coordinator_comes_from_flags_or_variables(calls, monkeypatch):
    cluster.join("h:1", 4, 3)
    for name, value in (("ADDRESS", "h:1"), ("NUM_PROCESSES", "4"), ("PROCESS_ID", "3")):
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS" if name == "ADDRESS" else f"JAX_{name}", value)
    cluster.join()
    assert calls == [{"coordinator_address": "h:1", "num_processes": 4, "process_id": 3}] * 2


def test_a_coordinator_under_a_launcher_takes_its_numbers(calls, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "a,b")
    cluster.join("h:1")
    assert calls == [{"coordinator_address": "h:1"}]


@pytest.mark.parametrize(("count", "number"), [(0, -1), (0, 0), (2, 2), (2, -1)])
def test_a_coordinator_without_fitting_numbers_is_one_sentence(count, number, calls):
    with pytest.raises(
        UserError, match=r"^The coordinator h:1 [^\n]*--num_processes and --process_id\.$"
    ):
        cluster.join("h:1", count, number)
    assert not calls


def test_the_hosts_of_a_queued_tpu_slice_query_the_cloud(calls, monkeypatch):
    monkeypatch.setattr(cluster, "_on_tpu_vm", lambda environment: True)
    cluster.join()
    assert calls == [{}]


@pytest.mark.parametrize(
    ("chips", "libtpu", "platforms", "expected"),
    [
        (["accel0"], True, None, True),
        (["vfio/0"], True, "tpu,cpu", True),
        ([], True, None, False),
        (["accel0"], False, None, False),
        (["accel0"], True, "cpu", False),
        (["vfio/vfio"], True, None, False),
    ],
)
def test_a_tpu_vm_has_chips_and_libtpu(chips, libtpu, platforms, expected, tmp_path, monkeypatch):
    for chip in chips:
        (tmp_path / chip).parent.mkdir(exist_ok=True)
        (tmp_path / chip).touch()
    monkeypatch.setattr(
        cluster.importlib.util, "find_spec", lambda name: object() if libtpu else None
    )
    assert (
        cluster._on_tpu_vm({} if platforms is None else {"JAX_PLATFORMS": platforms}, tmp_path)
        is expected
    )


def test_processes_that_cannot_be_connected_are_one_sentence(calls, monkeypatch):
    def refuse(**known):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(
        UserError, match=r"^The processes of this run could not be connected: DEADLINE[^\n]*\.$"
    ):
        cluster.join("h:1", 2, 1)
