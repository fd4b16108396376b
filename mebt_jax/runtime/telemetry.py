"""What a run says while it runs: `metrics.jsonl`, TensorBoard where it is installed, a progress
bar, the parameter table.

Only the first process of a run writes.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from flax import nnx
from tqdm import tqdm

from mebt_jax.errors import UserError
from mebt_jax.runtime import pictures
from mebt_jax.runtime.checkpoints import Checkpointer

# Steps that a profile shows: by then programs are compiled, and the loop goes its usual way.
PROFILED = range(20, 30)


class MetricsLog:
    """`<directory>/metrics.jsonl`, one {"step": n, name: number, ...} a line, and the same numbers
    for TensorBoard.
    """

    def __init__(self, directory: Path, step: int) -> None:
        """Lines after `step`, where the run goes on, are of a run that was cut short: they are
        removed.
        """
        self.path = directory / "metrics.jsonl"
        self._file, self._tensorboard = None, None
        self.kept: list[dict[str, Any]] = []
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            self.kept = [record for record in read_metrics(self.path) if record["step"] <= step]
            # Replaced in one operation: a kill at this moment must not lose the lines that are
            # there.
            kept = self.path.with_suffix(".kept")
            try:
                kept.write_text(
                    "".join(json.dumps(record) + "\n" for record in self.kept), encoding="utf-8"
                )
                kept.replace(self.path)
                self._file = open(self.path, "a", encoding="utf-8")
            except OSError as error:
                raise UserError(
                    f"Could not write {self.path} ({error.strerror}); free some space and run the "
                    "same command "
                    f"again."
                ) from error
            self._tensorboard = _tensorboard_writer(directory / "tensorboard")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Names are "<split>/<metric>", such as "train/loss"."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()  # a kill may come at any time
        except OSError as error:
            raise UserError(
                f"Could not write {self.path} ({error.strerror}); free some space and run the same "
                "command "
                f"again."
            ) from error
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, dict(values))

    def draw(self, path: Path, title: str) -> None:
        """Draws all lines so far as curves into a PNG."""
        if self._file is not None:
            pictures.curves(path, read_metrics(self.path), title=title)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; the half-written last line of a killed run is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class StepMetrics:
    """Collects the metrics of each step without holding the device up, for averages over the steps
    between two log lines.
    """

    def __init__(
        self, stage: str, checkpointer: Checkpointer, unlogged: list[dict[str, float]]
    ) -> None:
        """`unlogged` is what an earlier run had collected when it saved, so that the next line is
        as without a kill.
        """
        self.unlogged = list(unlogged)
        self._stage, self._checkpointer = stage, checkpointer
        self._on_device: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the scalars of a step that may not have finished yet; "loss" and "gradient_norm"
        must be among them.
        """
        if self._on_device:
            # One step runs while the host prepares the next; without this wait hundreds would queue
            # up with their batches.
            jax.block_until_ready(self._on_device[-1][1])
        self._on_device.append((step, metrics))

    def collect(self) -> None:
        """Moves the numbers to the host, into `unlogged`.

        Raises:
            UserError: loss or gradient is NaN or infinite; names the step and the last good
                checkpoint.
        """
        for step, metrics in self._on_device:
            numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
            bad = [name for name in ("loss", "gradient_norm") if not math.isfinite(numbers[name])]
            if bad:
                self._checkpointer.wait()
                raise UserError(
                    f"The {self._stage}'s {bad[0]} is {numbers[bad[0]]} at step {step} and "
                    "training has stopped; "
                    f"{self._checkpointer.last_good}: start again in another --workdir with a "
                    "lower "
                    f"config.{self._stage}.training.learning_rate or clip_norm, or more "
                    "warmup_steps."
                )
            self.unlogged.append(numbers)
        self._on_device.clear()

    def average(self) -> dict[str, float]:
        """Means over the steps since the last call that have the number."""
        self.collect()
        columns: dict[str, list[float]] = {}
        for numbers in self.unlogged:
            for name, value in numbers.items():
                columns.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in columns.items()}
        self.unlogged.clear()
        return means


class StepProfile:
    """Where `wanted`, a profile of the steps PROFILED since the start of this process, which
    TensorBoard and Perfetto show.
    """

    def __init__(self, stage: str, folder: Path, *, wanted: bool) -> None:
        self._stage, self._folder, self._wanted = stage, folder, wanted
        self._finished, self._running = 0, False

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:  # the training ends among these steps
            self._stop()

    def before_step(self) -> None:
        if self._wanted and self._finished == PROFILED.start:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        elif self._running and self._finished == PROFILED.stop:
            self._stop()
        self._finished += 1

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        say(
            f"{self._stage}: wrote a profile of {PROFILED.stop - PROFILED.start} steps to "
            f"{self._folder}"
        )


def progress_bar(stage: str, total: int, done: int) -> tqdm:
    """Bar of a training loop with steps per second, remaining time, and the loss by
    `set_postfix`.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        desc=stage,
        total=total,
        initial=done,
        unit="step",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        mininterval=0.5 if interactive else 10.0,
    )  # in a log file every update is a line


def write_parameter_overview(params: nnx.State, path: Path) -> int:
    """Writes the table of names, shapes and sizes to `path`; returns the number of parameters."""
    tree = nnx.to_pure_dict(params)
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(parameter_overview.get_parameter_overview(tree, include_stats=False) + "\n")
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def say(message: str) -> None:
    """A line above the progress bar."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


def _tensorboard_writer(directory: Path) -> Any:
    # clu's writers import TensorFlow, which costs seconds and is not a dependency; without it there
    # is metrics.jsonl.
    if (
        importlib.util.find_spec("tensorflow") is None
        or importlib.util.find_spec("tensorboard") is None
    ):
        return None
    from clu import metric_writers

    return metric_writers.SummaryWriter(str(directory))
