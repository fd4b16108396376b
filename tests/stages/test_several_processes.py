"""Real runs of several processes: killed one by one, told to stop, and gone on with by others on
another mesh.
"""

import signal
import time

import numpy as np
import pytest
from training_runs import TIMEOUT, Command

from mebt_jax.data import record_folders, token_cache
from mebt_jax.runtime import loop, pictures
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import data

pytestmark = pytest.mark.slow

# Seconds from the death of one process to the end of the others, who learn of it when they next
# wait for it.
PATIENCE = 150
# At the usual rate a rounding difference grows until codes differ: after 20 steps the losses are 1
# % apart on any two meshes.
LONG = {
    "tokenizer__training__learning_rate": 1e-6,
    "tokenizer__restart_threshold": 0.0,
    "tokenizer__training__steps": 40,
    "tokenizer__training__validate_every": 1000,
    "tokenizer__training__log_every": 1,
}

# (processes, devices each, mesh, process that gets a signal after the next checkpoint, the signal)
RUNS = [
    (2, 2, {"data": 2, "fsdp": 2}, 1, signal.SIGKILL),
    (
        4,
        1,
        {"data": 1, "fsdp": 2, "sequence": 2},
        0,
        signal.SIGKILL,
    ),  # the one that the others look to; two hold the same clips
    (
        2,
        2,
        {"data": 1, "fsdp": 1, "sequence": 4},
        1,
        signal.SIGTERM,
    ),  # every process needs all clips
    (1, 2, {"data": 2}, None, None),
]


def test_killed_one_by_one_and_gone_on_with_on_other_meshes(tmp_path, compilation_cache):
    whole, command = (
        Command(tmp_path / name, compilation_cache, "tokenizer", **LONG)
        for name in ("whole", "killed")
    )
    whole.run()
    for number, (processes, devices, mesh, target, sign) in enumerate(RUNS):
        started = command.start_several(processes, devices, mesh)
        if target is not None:
            command.wait_for_checkpoint(started)
            started[target].send_signal(sign)
        killed = time.monotonic()
        codes = [one.wait(timeout=TIMEOUT if sign is None else PATIENCE) for one in started]
        print(
            f"run {number}: exit statuses {codes} {time.monotonic() - killed:.0f} s after the "
            "signal"
        )
        output = command.outputs()
        assert (number == 0) == ("going on from step" not in output), output
        if sign == signal.SIGKILL:
            assert codes.pop(target) == -sign, output
            # 1 is our own end, with a sentence; JAX may abort them first, whose message is long.
            assert set(codes) <= {1, -signal.SIGABRT}, output
            assert 1 not in codes or "another process" in output, output
        elif sign == signal.SIGTERM:  # to one, obeyed by all
            assert codes == [loop.EXIT_TERMINATED] * processes, output
            assert "told to stop, saved step" in output, output
        else:
            assert codes == [0] * processes, output
    ours, theirs = (
        {line["step"]: line["train/loss"] for line in one.record()[0] if "train/loss" in line}
        for one in (command, whole)
    )
    assert list(ours) == list(theirs) == list(range(1, LONG["tokenizer__training__steps"] + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-3)


def test_several_processes_store_the_tokens_that_one_stores(
    tmp_path, tokenizer_run, compilation_cache, quick_compiler
):
    rng = np.random.default_rng(0)
    for i in range(7):  # records of several clips, and one batch that not all of them fill
        noise = rng.integers(0, 256, (9 + 6 * i, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        pictures.write_mp4(tmp_path / "videos" / f"{i}.mp4", noise, 25)
    overrides = {
        "tokenizer__checkpoint": str(tokenizer_run.workdir),
        "data__source": "folder",
        "data__path": str(tmp_path / "videos"),
        "data__tokens": True,
    }
    stored, losses = {}, {}
    for name in ("one", "two"):
        command = Command(tmp_path / name, compilation_cache, "prior", **overrides)
        workdir_lib.mark_done(command.config, command.workdir, "tokenizer")
        if name == "one":
            command.run()
        else:
            started = command.start_several(2, 1, {"data": 2})
            assert [one.wait(timeout=TIMEOUT) for one in started] == [0, 0], command.outputs()
        (folder,) = (command.workdir / "data").glob("tokens_*")
        manifest = record_folders.read_manifest(folder)
        splits = [
            token_cache.TokenSource(folder, split, manifest) for split in ("train", "validation")
        ]
        stored[name] = (
            folder.name,
            [split[index]["codes"] for split in splits for index in range(len(split))],
        )
        losses[name] = [line["train/loss"] for line in command.record()[0] if "train/loss" in line]
        data.check(command.config, command.workdir)
    assert (
        stored["one"][0] == stored["two"][0] and len(stored["one"][1]) == len(stored["two"][1]) > 6
    )
    for one, two in zip(stored["one"][1], stored["two"][1]):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-4)
