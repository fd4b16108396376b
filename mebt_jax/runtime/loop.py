"""The training loop of both stages: restore the latest checkpoint, then step, log, validate and
save, until all steps are done, a signal says stop, or a number is not finite.

A run that was killed at any moment and started again writes the same numbers as one that never was:
the checkpoint holds the state, the position in the data and the metrics since the last log line,
and everything random follows from the step.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mebt_jax.runtime import checkpoints, telemetry
from mebt_jax.runtime.optimizers import learning_rate_schedule
from mebt_jax.runtime.runtime_config import TrainingConfig
from mebt_jax.runtime.train_state import TrainState, abstract

EXIT_TERMINATED = 143  # 128 + SIGTERM, what a shell reports of a process that obeyed the signal


class Batches(Protocol):
    """Endless batches of this process, with a position that can be saved as JSON."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class StopSignal:
    """Context manager: `requested` turns True at SIGTERM, so that a loop can save and leave between
    two steps.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        # With several processes JAX's coordination service listens itself, see
        # `Checkpointer.preempted`.
        self._previous = (
            signal.signal(signal.SIGTERM, self._note) if jax.process_count() == 1 else None
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_: object) -> None:
        self.requested = True


def train(
    stage: str,
    directory: Path,
    training: TrainingConfig,
    meta: dict[str, Any],
    state: TrainState,
    batches: Batches,
    *,
    take_step: Callable[
        [TrainState, Mapping[str, np.ndarray], int], tuple[TrainState, dict[str, jax.Array]]
    ],
    validate: Callable[[TrainState, int], dict[str, float]],
    best_by: str,
    keep_steps: Sequence[int] = (),
    warn: Callable[[Mapping[str, float]], Sequence[str]] = lambda record: (),
    profile: bool = False,
    earlier_path: Callable[[checkpoints.ArrayPath], checkpoints.ArrayPath] | None = None,
) -> TrainState:
    """Trains up to `training.steps` and returns the last state.

    Args:
        stage: name in messages.
        directory: gets checkpoints/, metrics.jsonl, curves.png.
        training: step count and cadences.
        meta: plain JSON saved with each checkpoint.
        state: at step 0; the latest checkpoint replaces it.
        batches: of the training data.
        take_step: (state, batch, finished steps) -> (state, scalars with "loss" and
            "gradient_norm"); may donate the state.
        validate: (state, finished steps) -> numbers.
        best_by: the number of `validate` by which the best checkpoint is chosen; smaller is better.
        keep_steps: steps at which a checkpoint is written that is never deleted.
        warn: gets every line of metrics.jsonl in turn, those of an earlier run too; returns
            sentences for the user about the last of them.
        profile: write a profile of some steps, see `telemetry.StepProfile`.
        earlier_path: see `Checkpointer`.

    Raises:
        UserError: loss or state not finite, or a checkpoint could not be written or read.
        SystemExit: 143 after SIGTERM, when everything is saved.
    """
    with checkpoints.Checkpointer(
        directory / "checkpoints", meta, training.keep_every, keep_steps, earlier_path
    ) as checkpointer:
        step, state, unlogged = restore_latest(stage, checkpointer, state, batches)
        metrics = telemetry.StepMetrics(stage, checkpointer, unlogged)
        rate = learning_rate_schedule(training)
        with (
            telemetry.MetricsLog(directory, step) as log,
            StopSignal() as stop,
            telemetry.StepProfile(stage, directory / "profile", enabled=profile) as profiler,
            telemetry.progress_bar(stage, training.steps, step) as bar,
        ):
            for record in log.earlier:
                warn(record)  # the earlier run has shown its sentences already
            while step < training.steps:
                profiler.before_step()
                state, step_metrics = take_step(state, next(batches), step)
                step += 1
                metrics.add(step, step_metrics)
                bar.update()
                last = step >= training.steps
                leaving = not last and (stop.requested or checkpointer.preempted(step))
                if last or step % training.log_every == 0:
                    values = metrics.average() | {"learning_rate": float(rate(step - 1))}
                    record = {f"train/{name}": value for name, value in values.items()}
                    log.write(step, record)
                    for sentence in warn({"step": step, **record}):
                        telemetry.say(f"{stage}: WARNING, {sentence}")
                    bar.set_postfix(loss=f"{values['loss']:.4g}")
                validation: dict[str, float] = {}
                if last or step % training.validate_every == 0:
                    metrics.collect()
                    validation = validate(state, step)
                    log.write(
                        step, {f"validation/{name}": value for name, value in validation.items()}
                    )
                    log.draw(directory / "curves.png", title=stage)
                if (
                    last
                    or leaving
                    or validation
                    or step % training.checkpoint_every == 0
                    or step in keep_steps
                ):
                    metrics.collect()
                    progress = {"batches": batches.get_state(), "unlogged": metrics.unlogged}
                    checkpointer.save(step, state, progress, metric=validation.get(best_by))
                if leaving:
                    checkpointer.wait()
                    telemetry.say(
                        f"{stage}: told to stop, saved step {step}; the same command goes on from "
                        "there"
                    )
                    raise SystemExit(EXIT_TERMINATED)
    return state


def restore_latest(
    stage: str, checkpointer: checkpoints.Checkpointer, state: TrainState, batches: Batches
) -> tuple[int, TrainState, list[dict[str, float]]]:
    """(finished steps, state, metrics since the last log line) of the latest checkpoint, or of step
    0 if there is none; moves `batches` to where they were then.
    """
    step = checkpointer.latest_step()
    if step is None:
        return 0, state, []
    restored = checkpointer.restore(step, abstract(state))
    batches.set_state(restored.progress["batches"])
    telemetry.say(f"{stage}: going on from step {step}")
    return step, restored.state, restored.progress["unlogged"]
