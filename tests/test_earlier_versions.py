"""A small run of an earlier version goes on as it would have there; old names lead to new ones.

tests/earlier_runs/README.md says how the stored run was made.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mebt_jax import config as config_lib
from mebt_jax import earlier_versions
from mebt_jax.runtime import telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.sampler import Sampler
from mebt_jax.stages import evaluate, prior, sample, tokenizer

STORED = Path(__file__).parent / "earlier_runs"
# The losses of the steps after the last checkpoint, by that version.
LOSSES = json.loads((STORED / "losses.json").read_text())


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    shutil.unpack_archive(STORED / "run.tar.xz", folder)
    return folder / "run"


@pytest.fixture
def run(stored, tmp_path):
    """(config, workdir) of a copy, as a command with the same settings takes it over."""
    workdir = tmp_path / "run"
    shutil.copytree(stored, workdir)
    config = config_lib.from_saved(workdir_lib.read_json(workdir / "config.json"), workdir)
    workdir_lib.claim(config, workdir)
    return config, workdir


def with_steps(config, stage, steps):
    group = getattr(config, stage)
    training = dataclasses.replace(group.training, steps=steps)
    return dataclasses.replace(config, **{stage: dataclasses.replace(group, training=training)})


def losses(folder):
    records = telemetry.read_metrics(folder / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}


def test_every_field_is_taken_over_by_its_new_name(run):
    config, workdir = run
    assert config.tokenizer.norm == "layer" and config.tokenizer.codebook_size == 16
    assert config.tokenizer.adversarial.frame_weight == 1.0
    assert config.backbone.layers == ("encode", "decode") and config.backbone.num_latents == 4
    assert (config.backbone.residual, config.backbone.positions) == ("query", "rotary")
    assert config.backbone.initialization == "local"
    assert config.backbone.remat == "save_query_projections"
    assert config.method.interval_schedule == "gaussian_renormalized"
    assert (config.method.interval_alpha, config.method.loss_block) == (8.0, 16)
    assert config.prior.training.steps == 6 and config.decoding.order == "random"
    # From now on it is a run of this version.
    assert workdir_lib.read_json(workdir / "config.json") == config_lib.to_dict(config)


def test_finished_stages_are_still_finished(run):
    config, workdir = run
    for _ in range(2):
        assert all(workdir_lib.is_done(config, workdir, stage) for stage in workdir_lib.STAGES)
        workdir_lib.claim(config, workdir)
    more = with_steps(config, "prior", 9)
    done = {stage: workdir_lib.is_done(more, workdir, stage) for stage in workdir_lib.STAGES}
    assert [stage for stage, is_done in done.items() if is_done] == ["data", "tokenizer"]


def test_it_draws_the_same_clips(run):
    config, workdir = run
    stored = np.load(workdir / "sample" / "tokens.npz")["codes"]
    sampler = Sampler.load(workdir)
    np.testing.assert_array_equal(sampler.generate(8).latents, stored)

    # The sample stage draws the clip that is missing, and leaves the others as they are.
    tokens = workdir / "sample" / "tokens"
    (tokens / "clip_0003.npy").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in tokens.iterdir()}
    sample.run(config, workdir)
    np.testing.assert_array_equal(np.load(workdir / "sample" / "tokens.npz")["codes"], stored)
    assert {name: (tokens / name).stat().st_mtime_ns for name in times} == times


@pytest.mark.slow
def test_it_is_evaluated_to_the_same_numbers(run):
    config, workdir = run
    before = json.loads((workdir / "evaluate" / "metrics.json").read_text())
    evaluate.run(config, workdir)
    after = json.loads((workdir / "evaluate" / "metrics.json").read_text())
    assert after["prior/nll"]["value"] == pytest.approx(
        before["transformer/nll"]["value"], rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [prior, tokenizer], ids=lambda stage: stage.STAGE)
def test_training_goes_on_with_the_losses_that_it_would_have_had(run, stage):
    config, workdir = run
    stage.run(with_steps(config, stage.STAGE, 9), workdir)
    stage = stage.STAGE
    found = losses(workdir_lib.stage_folder(workdir, stage))
    expected = {int(step): loss for step, loss in LOSSES[stage].items()}
    assert set(expected) <= set(found)
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-4)


def test_its_weights_are_taken_from_a_folder_of_the_converter(run, tmp_path):
    """Whose folders have the names of the stages then."""
    config, workdir = run
    exported, new = tmp_path / "exported", tmp_path / "new"
    for name in ("tokenizer", "transformer"):
        shutil.copytree(workdir / name, exported / name)
    config = dataclasses.replace(
        with_steps(config, "prior", 0),
        tokenizer=dataclasses.replace(config.tokenizer, checkpoint=str(exported)),
    )
    config = dataclasses.replace(
        config, prior=dataclasses.replace(config.prior, checkpoint=str(exported))
    )
    drawn = Sampler.from_workdir(config, new).generate(2).latents
    np.testing.assert_array_equal(drawn, np.load(workdir / "sample" / "tokens.npz")["codes"][:2])


def test_old_names_lead_to_new_ones_that_exist():
    fields = earlier_versions.flat(config_lib.to_dict(config_lib.Config()))
    for old, new in earlier_versions.RENAMED.items():
        assert old not in fields
        assert any(name == new or name.startswith(f"{new}.") for name in fields), new
    for old in ("transformer.width", "masking.splits", "tokenizer.codes", "sample.top_k"):
        assert earlier_versions.new_name(old).startswith("config.")
    assert earlier_versions.new_name("transformer.training.clip_norm") == (
        "config.prior.training.grad_clip_norm"
    )
    assert earlier_versions.new_name("transformer.flavour") == (
        "config.backbone.residual, config.backbone.positions and config.backbone.initialization"
    )
    assert earlier_versions.new_name("transformer") == (
        "config.backbone, config.method and config.prior"
    )
    assert earlier_versions.new_name("sample.task") == earlier_versions.new_name("data") == ""
