"""A newcomer is a class and a line in a table: a toy backbone and a toy method go through every
stage without a change elsewhere.
"""

import json
import signal

import jax
import numpy as np
import pytest
import toys
from ml_collections import ConfigDict
from tiny_config import tiny_config
from training_runs import ROOT, Command

from mebt_jax.backbones import BACKBONES
from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods import METHODS
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import data, evaluate, prior, sample, tokenizer

CASES = ("backbone", "method")


def with_toy(case: str, **overrides) -> ConfigDict:
    """The tiny config with the toy backbone under the masked method, or with the toy method."""
    config = tiny_config(mesh__data=1, **overrides)
    with config.unlocked():
        config.backbone = ConfigDict({"kind": "toy", "width": 8})
        if case == "method":
            config.method = ConfigDict({"kind": "toy", "width": 8})
            config.decoding = ConfigDict({"kind": "toy"})
    return config


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", toys.ToyBackbone)
    monkeypatch.setitem(METHODS, "toy", toys.ToyMethod)


@pytest.mark.usefixtures("registered", "quick_compiler")
@pytest.mark.parametrize("case", CASES)
def test_a_toy_trains_resumes_samples_and_is_evaluated(case, tmp_path):
    steps = {"prior__training__steps": 6, "prior__training__log_every": 1}
    config = from_config_dict(with_toy(case, **steps))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for stage in (data, tokenizer, prior, sample, evaluate):
        stage.run(config, whole)
    losses = metrics_of(whole)
    assert len(losses) == 6 and losses[-1] < losses[0]
    report = json.loads((whole / "evaluate" / "metrics.json").read_text())
    assert np.isfinite(report["prior/nll"]["value"])
    tokens = np.load(whole / "sample" / "tokens.npz")["codes"]
    assert tokens.shape == (8, *config.grid) and len(np.unique(tokens)) > 1

    shorter = from_config_dict(with_toy(case, **steps | {"prior__training__steps": 3}))
    for stage in (data, tokenizer):
        stage.run(config, resumed)
    prior.run(shorter, resumed)
    prior.run(config, resumed)
    assert metrics_of(resumed) == losses


def metrics_of(workdir) -> list[float]:
    lines = (workdir / "prior" / "metrics.jsonl").read_text().splitlines()
    return [x["train/loss"] for x in map(json.loads, lines) if "train/loss" in x]


@pytest.mark.usefixtures("registered")
def test_what_a_toy_cannot_draw_is_trained_without_pictures(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise UserError("The toy cannot draw.")

    monkeypatch.setattr(toys.ToyMethod, "sample", refuse)
    config = from_config_dict(with_toy("method"))
    for stage in (data, tokenizer, prior):
        stage.run(config, tmp_path)
    assert (tmp_path / "prior" / "done.json").exists()
    assert "no pictures of drawn clips (The toy cannot draw.)" in capsys.readouterr().err


def test_an_unknown_kind_names_the_nearest():
    config = tiny_config()
    config.backbone.kind = "mept"
    with pytest.raises(UserError, match="backbone.kind .*mept.*mebt"):
        from_config_dict(config)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_toy_that_was_killed_ends_like_one_that_was_not(
    case, tokenizer_run, compilation_cache, tmp_path
):
    path = tmp_path / "toy_config.py"
    path.write_text(
        f"from test_toys import with_toy\n\ndef get_config():\n    return with_toy({case!r})\n"
    )
    overrides = {
        "tokenizer__checkpoint": str(tokenizer_run.workdir),
        "prior__training__steps": 40,
        "prior__training__validate_every": 1000,
    }
    commands = []
    for name in ("whole", "killed"):
        command = Command(tmp_path / name, compilation_cache, "prior", **overrides)
        command.arguments[1:3] = [f"{ROOT}/tests/stages/toys.py"]
        command.arguments[2] = f"--config={path}"
        folders = [ROOT, ROOT / "tests", ROOT / "tests" / "stages"]
        command.environment["PYTHONPATH"] = ":".join(map(str, folders))
        workdir_lib.mark_done(command.config, command.workdir, "tokenizer")
        commands.append(command)
    whole, killed = commands
    whole.run()
    killed.stop(signal.SIGKILL, delay=0.1)
    assert "going on from step" in killed.run()
    assert killed.record() == whole.record()
    assert jax.device_count() == 8  # of this process; the commands have one device
