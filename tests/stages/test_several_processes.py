"""Real runs of several processes: killed one by one, told to stop, and gone on with by others on another mesh."""

import signal
import time

import numpy as np
import pytest
from training_runs import Command

from mebt_jax.runtime import checkpoints

pytestmark = pytest.mark.slow

# From the death of one process to the end of the others.
PATIENCE = 150
LONG = {"tokenizer__training__steps": 60, "tokenizer__training__validate_every": 1000, "tokenizer__training__log_every": 1}

# (processes, devices each, mesh, process that gets a signal after the next checkpoint, the signal)
RUNS = [
    (2, 2, {"data": 2, "fsdp": 2}, 1, signal.SIGKILL),
    (4, 1, {"data": 1, "fsdp": 4}, 0, signal.SIGKILL),  # the one that the others look to
    (2, 2, {"data": 1, "fsdp": 1, "sequence": 4}, 1, signal.SIGTERM),  # every process needs all clips
    (4, 1, {"data": 2, "fsdp": 1, "sequence": 2}, None, None),
]


def test_killed_one_by_one_and_gone_on_with_on_other_meshes(tmp_path, compilation_cache):
    whole, command = (Command(tmp_path / name, compilation_cache, "tokenizer", **LONG) for name in ("whole", "killed"))
    whole.run()
    for number, (processes, devices, mesh, target, sign) in enumerate(RUNS):
        started = command.start_several(processes, devices, mesh)
        if target is not None:
            command.wait_for_checkpoint(started)
            started[target].send_signal(sign)
        killed = time.monotonic()
        codes = [one.wait(timeout=PATIENCE) for one in started]
        print(f"run {number}: exit statuses {codes} {time.monotonic() - killed:.0f} s after the signal")
        output = command.outputs()
        assert (number == 0) == ("going on from step" not in output), output
        if sign == signal.SIGKILL:
            assert codes.pop(target) == -sign and 0 not in codes, output
            # Where the first one dies, on which all others depend, JAX may end them before they can say anything.
            assert target == 0 or "another process" in output and "Traceback" not in output, output
        elif sign == signal.SIGTERM:  # to one, obeyed by all
            assert codes == [checkpoints.EXIT_TERMINATED] * processes, output
            assert "told to stop, saved step" in output, output
        else:
            assert codes == [0] * processes, output
    (ours, _), (theirs, _) = command.record(), whole.record()
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs):
        np.testing.assert_allclose(line["train/loss"], expected["train/loss"], rtol=1e-3)
