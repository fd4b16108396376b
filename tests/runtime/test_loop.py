import dataclasses
import os
import signal

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.runtime import loop, telemetry, train_state

TRAINING = dataclasses.replace(
    from_config_dict(tiny_config()).tokenizer.training,
    steps=10,
    log_every=4,
    validate_every=6,
    checkpoint_every=3,
)


class Counting:
    """Batches 0, 1, 2, ..."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        self.position += 1
        return {"video": np.float32(self.position - 1)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def run(directory, on_step=lambda step: None, poison=None, profile=False):
    """Trains a number to be the sum of all batches."""
    optimizer = optax.sgd(1.0)
    state = train_state.new_state({"w": jnp.zeros(())}, optimizer, ema=False)

    def take_step(state, batch, step):
        assert int(state.step) == step and float(batch["video"]) == step
        on_step(step)
        state = train_state.apply_gradients(
            state, {"w": -jnp.float32(batch["video"])}, optimizer, 0.0
        )
        loss = jnp.float32(np.nan if step == poison else 0.1 * step)
        return state, {"loss": loss, "gradient_norm": jnp.float32(1.0)}

    return loop.train(
        "tokenizer",
        directory,
        TRAINING,
        {},
        state,
        Counting(),
        take_step=take_step,
        best_by="loss",
        profile=profile,
        validate=lambda state, step: {"loss": float(state.params["w"])},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of a run that nothing interrupted, its state, the steps during which a profile was
    written).
    """
    folder, tracing, seen = tmp_path_factory.mktemp("whole"), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "PROFILED", range(2, 5))
        patch.setattr("jax.profiler.start_trace", lambda to, **_: tracing.append(to))
        patch.setattr("jax.profiler.stop_trace", tracing.clear)
        state = run(
            folder,
            on_step=lambda step: seen.extend([step] * (tracing == [folder / "profile"])),
            profile=True,
        )
    return folder, state, seen


def test_lines_validations_and_checkpoints_come_when_due(whole):
    folder, state, profiled = whole
    assert float(state.params["w"]) == sum(range(10))
    records = telemetry.read_metrics(folder / "metrics.jsonl")
    losses, validations = (
        {record["step"]: record[name] for record in records if name in record}
        for name in ("train/loss", "validation/loss")
    )
    assert losses == pytest.approx({4: 0.15, 8: 0.55, 10: 0.85})
    assert validations == {6: 15.0, 10: 45.0}
    # The best of the validated ones (6) and the two latest.
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir()) == [6, 9, 10]
    assert (folder / "curves.png").exists()
    assert profiled == [2, 3, 4]


@pytest.mark.parametrize("step", [1, 4])
def test_sigterm_saves_and_the_next_run_ends_like_an_uninterrupted_one(tmp_path, step, whole):
    with pytest.raises(SystemExit) as leaving:
        run(
            tmp_path,
            on_step=lambda at: os.kill(os.getpid(), signal.SIGTERM) if at == step else None,
        )
    assert leaving.value.code == 143
    assert (tmp_path / "checkpoints" / str(step + 1)).is_dir()
    folder, state, _ = whole
    assert run(tmp_path).params == state.params
    assert (tmp_path / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


def test_nan_stops_before_the_state_is_saved(tmp_path):
    with pytest.raises(UserError, match=f"loss is nan at step 5 .* {tmp_path}/checkpoints/3"):
        run(tmp_path, poison=4)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_a_training_that_ends_early_still_writes_its_profile(tmp_path, capsys):
    with telemetry.StepProfile("tokenizer", tmp_path, enabled=True) as profile:
        for _ in range(telemetry.PROFILED.start + 1):
            profile.before_step()
        jnp.ones(3).sum().block_until_ready()
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb")) and list(
        tmp_path.glob("plugins/profile/*/perfetto_trace.json.gz")
    )
    assert f"steps to {tmp_path}" in capsys.readouterr().err
