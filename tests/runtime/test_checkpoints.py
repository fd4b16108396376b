import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints, train_state
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.runtime_config import MeshConfig

ROOT = Path(__file__).parents[2]


def state_on(mesh_config, value=1.0):
    mesh = mesh_lib.make_mesh(mesh_config)
    return train_state.create_sharded(
        lambda: {"ema": {"kernel": value * jnp.arange(512.0).reshape(64, 8)}, "step": jnp.int32(3)},
        mesh,
        64,
    )[0]


def test_what_was_saved_comes_back_on_another_mesh(tmp_path):
    state = state_on(MeshConfig(2, 4, 1, 1))
    with checkpoints.Checkpointer(tmp_path, {"stage": "x"}, keep_every=10) as checkpointer:
        assert checkpointer.latest_step() is None
        checkpointer.save(
            3, state, {"batches": {"next_clip": 24}, "unlogged": [{"loss": 0.1}]}, metric=None
        )
    target = state_on(MeshConfig(1, 8, 1, 1), value=0.0)
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=10) as checkpointer:
        restored = checkpointer.restore(checkpointer.latest_step(), train_state.abstract(target))
    assert restored.progress == {"batches": {"next_clip": 24}, "unlogged": [{"loss": 0.1}]}
    assert checkpoints.read_meta(tmp_path) == {"stage": "x", "step": 3}
    assert restored.state["ema"]["kernel"].sharding == target["ema"]["kernel"].sharding
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)


def test_latest_two_best_and_multiples_are_kept(tmp_path):
    metrics = {1: 5.0, 2: None, 3: 0.5, 4: None, 5: 0.9, 6: 0.8, 7: None, 8: 0.7}
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=5) as checkpointer:
        for step, metric in metrics.items():
            checkpointer.save(step, {"w": jnp.float32(step)}, {}, metric)
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [3, 5, 7, 8]


def test_part_of_a_state_is_read_alone(tmp_path):
    state = state_on(MeshConfig(1, 1, 1, 1))
    folder = tmp_path / "run" / "tokenizer" / "checkpoints"
    with checkpoints.Checkpointer(folder, {"a": 1}, keep_every=10) as checkpointer:
        checkpointer.save(3, state, {}, metric=None)
    for given in (tmp_path / "run", folder.parent, folder):
        assert checkpoints.find_checkpoints(given, "tokenizer") == folder
    found = checkpoints.read_arrays(folder, train_state.abstract({"ema": state["ema"]}))
    np.testing.assert_array_equal(found["ema"]["kernel"], state["ema"]["kernel"])
    assert checkpoints.read_meta(folder) == {"a": 1, "step": 3}
    with pytest.raises(UserError, match="no transformer checkpoint"):
        checkpoints.find_checkpoints(tmp_path / "run", "transformer")


def test_arrays_of_other_shapes_are_refused_in_one_sentence(tmp_path):
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=10) as checkpointer:
        checkpointer.save(3, state_on(MeshConfig(1, 1, 1, 1)), {}, metric=None)
    other = train_state.abstract({"ema": {"kernel": jnp.zeros((32, 8))}})
    with pytest.raises(UserError, match=r"^The checkpoint [^\n]* does not fit the config"):
        checkpoints.read_arrays(tmp_path, other)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=10) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(2)}, {}, metric=None)
        with pytest.raises(UserError, match=f"step 2.*{tmp_path}/1"):
            checkpointer.save(2, {"w": jnp.array([1.0, jnp.nan])}, {}, metric=None)
    assert checkpoints.read_meta(tmp_path)["step"] == 1


FULL_DISK = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np
from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints
noise = lambda seed: {"w": jnp.asarray(np.random.default_rng(seed).normal(size=200_000))}
try:
    with checkpoints.Checkpointer(Path(sys.argv[1]), {}, keep_every=10) as checkpointer:
        checkpointer.save(1, noise(1), {}, metric=None)
        checkpointer.wait()
        # Every write beyond this limit fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpointer.save(2, noise(2), {}, metric=None)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before(tmp_path):
    result = run_python(FULL_DISK, tmp_path)
    assert result.returncode == 2, result.stderr
    assert "save the checkpoint of step 2" in result.stdout and f"{tmp_path}/1" in result.stdout
    assert "Traceback" not in result.stderr and result.stdout.count("\n") == 1
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=10) as checkpointer:
        assert checkpointer.latest_step() == 1
        restored = checkpointer.restore(1, {"w": jax.ShapeDtypeStruct((200_000,), jnp.float32)})
    np.testing.assert_array_equal(
        restored.state["w"], np.random.default_rng(1).normal(size=200_000).astype(np.float32)
    )


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
from mebt_jax.runtime import checkpoints
checkpointer = checkpoints.Checkpointer(Path(sys.argv[1]), {}, keep_every=10)
checkpointer.save(1, {"w": jnp.ones(4)}, {}, metric=None)
checkpointer.wait()
checkpointer.save(2, {"w": jnp.ones((4000, 4000))}, {}, metric=None)
while os.listdir(sys.argv[1]) == ["1"]:
    pass  # the writing thread has not made its folder yet
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_checkpoint_cut_short_by_a_kill_is_ignored(tmp_path):
    assert run_python(KILLED_WHILE_SAVING, tmp_path).returncode == -signal.SIGKILL
    assert any(not entry.name.isdigit() for entry in tmp_path.iterdir())  # it was indeed cut short
    assert checkpoints.read_meta(tmp_path)["step"] == 1
    with checkpoints.Checkpointer(tmp_path, {}, keep_every=10) as checkpointer:
        assert checkpointer.latest_step() == 1


def run_python(program, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
