"""A newcomer is a class and a line in a table: a toy backbone and a toy method go through every
stage without a change elsewhere.
"""

import json
import signal

import jax
import numpy as np
import pytest
import toys
from flax import nnx
from ml_collections import ConfigDict
from tiny_config import tiny_config
from training_runs import ROOT, Command
from untrained_runs import write_tokenizer

from mebt_jax import config as config_lib
from mebt_jax.backbones import BACKBONES
from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods import METHODS
from mebt_jax.runtime import host_arrays
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import new_state
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


@pytest.fixture(scope="module")
def tokenizer_workdir(tmp_path_factory):
    """A tokenizer for all runs of this file."""
    workdir = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(from_config_dict(tiny_config(mesh__data=1)), workdir)
    return workdir


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("case", CASES)
def test_a_toy_trains_resumes_samples_and_is_evaluated(case, tokenizer_workdir, tmp_path):
    steps = {"tokenizer__checkpoint": str(tokenizer_workdir)} | {
        "prior__training__steps": 6,
        "prior__training__log_every": 1,
        "prior__training__validate_every": 1000,
    }
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
    data.run(config, resumed)
    prior.run(shorter, resumed)
    prior.run(config, resumed)
    assert metrics_of(resumed) == losses


def metrics_of(workdir) -> list[float]:
    lines = (workdir / "prior" / "metrics.jsonl").read_text().splitlines()
    return [x["train/loss"] for x in map(json.loads, lines) if "train/loss" in x]


@pytest.mark.usefixtures("registered")
def test_what_a_toy_cannot_draw_is_trained_without_pictures(
    tokenizer_workdir, tmp_path, monkeypatch, capsys
):
    def refuse(*_, **__):
        raise UserError("The toy cannot draw.")

    monkeypatch.setattr(toys.ToyMethod, "sample", refuse)
    overrides = {"tokenizer__checkpoint": str(tokenizer_workdir)}
    config = from_config_dict(with_toy("method", **overrides))
    for stage in (data, prior):
        stage.run(config, tmp_path)
    assert (tmp_path / "prior" / "done.json").exists()
    assert "no pictures of drawn clips (The toy cannot draw.)" in capsys.readouterr().err


class Labelled(toys.ToyBackbone):
    """The toy with an embedding of the clip's label."""

    CONDITIONS = ("label",)

    def __init__(self, config, tokens, rngs):
        super().__init__(config, tokens, rngs)
        self.labels = nnx.Embed(4, config.width, rngs=rngs)

    def __call__(self, tokens, condition=None, *, key=None):
        return super().__call__(tokens) + self.labels(condition["label"])[:, None]


def test_conditions_come_to_the_backbone_with_their_clips(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", Labelled)
    config = from_config_dict(
        with_toy(
            "backbone",
            prior__conditions=("label",),
            prior__training__microbatches=2,
            prior__training__weight_decay=0.0,
        )
    )
    mesh = mesh_lib.make_mesh(config.mesh)
    method = METHODS["masked"].from_config(config)
    graphdef, params = nnx.split(method.create(jax.random.key(0)), nnx.Param)
    before = np.asarray(params["labels"]["embedding"][...])
    optimizer = make_optimizer(config.prior.training, params)
    state = new_state(params, optimizer, ema=False)
    shardings = jax.tree.map(lambda _: mesh_lib.replicated(mesh), state)
    step_of = prior.step_programs(config, method, graphdef, optimizer, shardings, mesh)
    # Every clip is one token everywhere, which its label alone tells.
    labels = np.array([1, 3] * 4, np.int32)
    tokens = np.broadcast_to(labels[:, None, None, None], (8, *config.grid))
    losses = []
    for step in range(30):
        draw = method.draw(step)
        latents, condition = host_arrays.put_rows(mesh, tokens.astype(np.int32), labels)
        arrays = prior.put_draw(draw, mesh)
        state, metrics = step_of(draw.static)(
            state, latents, {"label": condition}, arrays, jax.random.key(1)
        )
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    moved = np.abs(np.asarray(state.params["labels"]["embedding"][...]) - before).max(axis=1)
    assert (moved[[1, 3]] > 0).all() and (moved[[0, 2]] == 0).all()


def test_a_condition_that_the_backbone_does_not_take_is_refused():
    config = tiny_config(prior__conditions=("label",))
    with pytest.raises(UserError, match="'label', but the backbone 'mebt' takes no conditions"):
        METHODS["masked"].from_config(from_config_dict(config))


def test_an_unknown_kind_names_the_nearest():
    config = tiny_config()
    config.backbone.kind = "mept"
    with pytest.raises(UserError, match="backbone.kind .*mept.*mebt"):
        from_config_dict(config)


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
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
        # The work directory is the toy's from the start.
        config = from_config_dict(with_toy(case, **overrides))
        workdir_lib.write_json(command.workdir / "config.json", config_lib.to_dict(config))
        workdir_lib.mark_done(config, command.workdir, "tokenizer")
        commands.append(command)
    whole, killed = commands
    whole.run()
    killed.stop(signal.SIGKILL, delay=0.1)
    assert "going on from step" in killed.run()
    assert killed.record() == whole.record()
    assert jax.device_count() == 8  # of this process; the commands have one device
