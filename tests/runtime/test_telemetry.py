import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints, telemetry


def test_lines_after_the_restored_step_and_half_lines_go(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4, "a"'
    )
    with telemetry.MetricsLog(tmp_path, step=2) as log:
        log.write(3, {"a": 0.1})
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "a": 1},
        {"step": 2, "a": 2},
        {"step": 3, "a": 0.1},
    ]


def test_a_failure_while_the_lines_are_written_again_loses_none(tmp_path, monkeypatch):
    lines = '{"step": 1, "a": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(lines)

    def write_half(path, text, **_):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        telemetry.MetricsLog(tmp_path, step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def scalars(loss):
    return {"loss": jnp.float32(loss), "gradient_norm": jnp.float32(1.0)}


def test_averages_survive_an_interruption_between_two_lines(tmp_path):
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=10) as checkpointer:
        whole = telemetry.StepMetrics("tokenizer", checkpointer, [])
        first = telemetry.StepMetrics("tokenizer", checkpointer, [])
        for step, loss in enumerate((0.1, 0.2, 0.7), start=1):
            whole.add(step, scalars(loss))
        first.add(1, scalars(0.1))
        first.collect()
        second = telemetry.StepMetrics(
            "tokenizer", checkpointer, json.loads(json.dumps(first.unlogged))
        )
        second.add(2, scalars(0.2))
        second.add(3, scalars(0.7))
        assert second.average() == whole.average()
        assert whole.unlogged == []


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_step_and_checkpoint(tmp_path, loss):
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=10) as checkpointer:
        checkpointer.save(7, {"w": jnp.ones(2)}, {}, metric=None)
        metrics = telemetry.StepMetrics("tokenizer", checkpointer, [])
        metrics.add(8, scalars(1.0))
        metrics.add(9, scalars(loss))
        with pytest.raises(
            UserError,
            match=rf"loss is {loss} at step 9 .*checkpoint is {tmp_path}/7: .*learning_rate",
        ):
            metrics.collect()


def test_parameter_overview_counts_and_lists(tmp_path):
    params = nnx.state(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Param)
    assert telemetry.write_parameter_overview(params, tmp_path / "parameters.txt") == 20
    assert "(3, 5)" in (tmp_path / "parameters.txt").read_text()
