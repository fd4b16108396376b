"""Starts, kills and reads real training processes, for the tests of both training stages."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import data

ROOT = Path(__file__).parents[2]
TIMEOUT = 600  # seconds; a busy machine takes ten times as long as one at rest
LONG_TOKENIZER = {"tokenizer__training__steps": 40, "tokenizer__training__validate_every": 1000}
# Every part of the training: without discriminators, they alone, and all together.
ADVERSARIAL_TOKENIZER = LONG_TOKENIZER | {
    f"tokenizer__adversarial__{name}": value
    for name, value in {
        "frame_weight": 1.0,
        "video_weight": 1.0,
        "channels": 4,
        "layers": 1,
        "start": 7,
        "warmup": 2,
        "ramp": 8,
    }.items()
}
LONG_TRANSFORMER = {
    "prior__training__steps": 40,
    "prior__training__validate_every": 1000,
}


class Command:
    """`python -m mebt_jax.main` for one stage of the tiny config in one workdir, as one process
    unless said otherwise.
    """

    def __init__(self, workdir: Path, cache: Path, stage: str, **overrides):
        self.workdir, self.stage = workdir, stage
        overrides = {"runtime__compilation_cache": str(cache)} | overrides
        self.config = from_config_dict(tiny_config(**overrides))
        workdir_lib.claim(self.config, workdir)
        data.run(self.config, workdir)
        fields = [
            f"--config.{name.replace('__', '.')}={value}" for name, value in overrides.items()
        ]
        self.arguments = [
            sys.executable,
            "-m",
            "mebt_jax.main",
            f"--config={ROOT}/tests/tiny_config.py",
            f"--workdir={workdir}",
            f"--stage={stage}",
            *fields,
        ]
        # One device, and a compiler in a hurry.
        self.environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.arguments,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> str:
        """Runs to the end and returns what it printed."""
        process = self.start()
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, output
        return output

    def stop(self, number: signal.Signals, delay: float) -> str:
        """Starts, sends a signal `delay` seconds after the next checkpoint, and returns what was
        printed until then.
        """
        process = self.start()
        self.wait_for_checkpoint([process])
        time.sleep(delay)
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
        assert not (self.workdir / self.stage / "done.json").exists()
        return output

    def start_several(
        self, processes: int, devices: int, mesh: dict[str, int]
    ) -> list[subprocess.Popen]:
        """The same run as several processes of so many devices each; their output goes to files in
        the workdir.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = self.environment | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        }
        arguments = [
            *self.arguments,
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={processes}",
            *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()),
        ]
        started = []
        for number in range(processes):
            with (self.workdir / f"process_{number}.log").open("w") as log:
                started.append(
                    subprocess.Popen(
                        [*arguments, f"--process_id={number}"],
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        return started

    def wait_for_checkpoint(self, started: list[subprocess.Popen]) -> None:
        """Returns when there is one more, or a process has ended."""
        before, deadline = self.steps(), time.monotonic() + TIMEOUT
        while (
            not self.steps() - before
            and all(one.poll() is None for one in started)
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)

    def outputs(self) -> str:
        return "\n".join(
            f"{path.name}: {path.read_text()}"
            for path in sorted(self.workdir.glob("process_*.log"))
        )

    def steps(self) -> set[int]:
        """Steps of the complete checkpoints."""
        folder = self.workdir / self.stage / "checkpoints"
        return (
            {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()}
            if folder.exists()
            else set()
        )

    def record(self) -> tuple[list[dict], dict]:
        """All metrics, and done.json with the hash of the weights."""
        directory = self.workdir / self.stage
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], json.loads(
            (directory / "done.json").read_text()
        )
