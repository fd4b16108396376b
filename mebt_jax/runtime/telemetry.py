"""What a run reports while it runs: `metrics.jsonl`, TensorBoard where it is installed, a progress
bar, the parameter table.

Only the first process of a run writes.
"""

import contextlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from flax import nnx
from tqdm import tqdm

from mebt_jax.errors import UserError
from mebt_jax.runtime import pictures
from mebt_jax.runtime.checkpoints import Checkpointer

# Steps of a profile, counted from the start of the process: by then all programs are compiled.
PROFILED = range(20, 30)


class MetricsLog:
    """`<directory>/metrics.jsonl`, one {"step": n, name: number, ...} a line, and the same numbers
    for TensorBoard.
    """

    def __init__(self, directory: Path, step: int) -> None:
        """Goes on after `step`; later lines are of a run that was cut short, and are removed.

        The lines up to `step` are in `earlier`.
        """
        self.path = directory / "metrics.jsonl"
        self._file, self._tensorboard = None, None
        self.earlier: list[dict[str, Any]] = []
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            records = read_metrics(self.path)
            self.earlier = [record for record in records if record["step"] <= step]
            lines = "".join(json.dumps(record) + "\n" for record in self.earlier)
            # Replaced in one operation, so that a kill at this moment loses none of the lines.
            temporary = self.path.with_suffix(".new")
            with self._disk_errors():
                temporary.write_text(lines, encoding="utf-8")
                temporary.replace(self.path)
                self._file = open(self.path, "a", encoding="utf-8")
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
        with self._disk_errors():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()  # a kill may come at any time
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, dict(values))

    def draw(self, path: Path, title: str) -> None:
        """Draws all lines so far as curves into a PNG."""
        if self._file is not None:
            pictures.curves(path, read_metrics(self.path), title=title)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Could not write {self.path} ({error.strerror}); free some space and run the same "
                "command again."
            ) from error


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
    """Collects the metrics of each step without making the device wait, and averages them over the
    steps between two log lines.
    """

    def __init__(
        self, stage: str, checkpointer: Checkpointer, unlogged: list[dict[str, float]]
    ) -> None:
        """`unlogged`: metrics that an earlier run had collected since its last log line when it
        saved; with them the next line is as without a kill.
        """
        self.unlogged = list(unlogged)
        self._stage, self._checkpointer = stage, checkpointer
        self._on_device: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the scalars of a step that may not have finished yet; "loss" and "gradient_norm"
        must be among them.
        """
        if self._on_device:
            # One step runs while the host prepares the next. Without this wait hundreds of steps
            # would queue up, each with its batch.
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
                    f"training has stopped; {self._checkpointer.last_good}: start again in another "
                    f"--workdir with a lower config.{self._stage}.training.learning_rate or "
                    "grad_clip_norm, or more warmup_steps."
                )
            self.unlogged.append(numbers)
        self._on_device.clear()

    def average(self) -> dict[str, float]:
        """Mean of each metric over the steps since the last call that reported it."""
        self.collect()
        columns: dict[str, list[float]] = {}
        for numbers in self.unlogged:
            for name, value in numbers.items():
                columns.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in columns.items()}
        self.unlogged.clear()
        return means


class StepProfile:
    """If `enabled`, writes a profile of the steps PROFILED, for TensorBoard and Perfetto.

    Not clu.periodic_actions.Profile: its module imports TensorFlow, which is not a dependency.
    """

    def __init__(self, stage: str, folder: Path, *, enabled: bool) -> None:
        self._stage, self._folder, self._enabled = stage, folder, enabled
        self._finished, self._running = 0, False

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:  # the training ended within these steps
            self._stop()

    def before_step(self) -> None:
        if self._enabled and self._finished == PROFILED.start:
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
    """Bar of a training loop: steps per second, remaining time, and the loss by `set_postfix`."""
    interactive = sys.stderr.isatty()
    return tqdm(
        desc=stage,
        total=total,
        initial=done,
        unit="step",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        mininterval=0.5 if interactive else 10.0,  # in a log file every update is a line
    )


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
    # clu's writers import TensorFlow, which takes seconds and is not a dependency. Without it the
    # numbers are in metrics.jsonl alone.
    if (
        importlib.util.find_spec("tensorflow") is None
        or importlib.util.find_spec("tensorboard") is None
    ):
        return None
    from clu import metric_writers

    return metric_writers.SummaryWriter(str(directory))
