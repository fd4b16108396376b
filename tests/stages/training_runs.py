"""Starts, kills and reads real training processes, for the tests of both training stages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import data

ROOT = Path(__file__).parents[2]
TIMEOUT = 240
# Every part of the training: without discriminators, they alone, and all together.
LONG_TOKENIZER = {"tokenizer__training__steps": 40, "tokenizer__training__validate_every": 1000} | {
    f"tokenizer__adversarial__{name}": value for name, value in {
        "frame_weight": 1.0, "clip_weight": 1.0, "channels": 4, "layers": 1, "start": 7, "warmup": 2, "ramp": 8}.items()}
LONG_TRANSFORMER = {"transformer__training__steps": 40, "transformer__training__validate_every": 1000}


class Command:
    """`python -m mebt_jax.main` for one stage of the tiny config in one workdir, always with the same arguments."""

    def __init__(self, workdir: Path, cache: Path, stage: str, **overrides):
        self.workdir, self.stage = workdir, stage
        overrides = {"runtime__compilation_cache": str(cache)} | overrides
        self.config = from_config_dict(tiny_config(**overrides))
        workdir_lib.claim(self.config, workdir)
        data.run(self.config, workdir)
        fields = [f"--config.{name.replace('__', '.')}={value}" for name, value in overrides.items()]
        self.arguments = [sys.executable, "-m", "mebt_jax.main", f"--config={ROOT}/tests/tiny_config.py",
                          f"--workdir={workdir}", f"--stage={stage}", *fields]
        # One device, and a compiler in a hurry.
        self.environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.arguments, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    def run(self) -> str:
        """Runs to the end and returns what it printed."""
        process = self.start()
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, output
        return output

    def stop(self, number: signal.Signals, delay: float) -> str:
        """Starts, sends a signal `delay` seconds after the next checkpoint, and returns what was printed until then."""
        before = self.steps()
        process = self.start()
        deadline = time.monotonic() + TIMEOUT
        while not self.steps() - before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
        assert not (self.workdir / self.stage / "done.json").exists()
        return output

    def steps(self) -> set[int]:
        """Steps of the complete checkpoints."""
        folder = self.workdir / self.stage / "checkpoints"
        return {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()} if folder.exists() else set()

    def record(self) -> tuple[list[dict], dict]:
        """All metrics, and done.json with the hash of the weights."""
        directory = self.workdir / self.stage
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], json.loads((directory / "done.json").read_text())
