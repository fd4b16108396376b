"""A tokenizer measured alone, before there is a transformer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mebt_jax.config import MeshConfig
from mebt_jax.errors import UserError
from mebt_jax.metrics.distances.reconstruction import psnr
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import evaluate
from mebt_jax.stages.evaluation.evaluate_tokenizer import FOLDER, WORST_CLIPS, WorstClips

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.slow
def test_evaluate_measures_both_splits_and_shows_the_worst_clips(tokenizer_run, capsys):
    config, workdir = tokenizer_run.config, tokenizer_run.workdir
    workdir_lib.require(config, workdir, "evaluate")
    with pytest.raises(UserError, match="transformer stage first"):
        workdir_lib.require(config, workdir, "sample")
    evaluate.run(config, workdir)
    metrics = json.loads((workdir / FOLDER / "metrics.json").read_text())
    for split, count in (("held-out", 8), ("training", 8)):
        for name in (
            "psnr",
            "ssim",
            "l1",
            "reconstruction_frechet",
            "usage",
            "dead_codes",
            "perplexity",
        ):
            entry = metrics[f"{split}/{name}"]
            assert (
                np.isfinite(entry["value"]) and entry["definition"] and entry["count"] == count
            ), name
        assert "not FVD" in metrics[f"{split}/reconstruction_frechet"]["protocol"]
        used = metrics[f"{split}/usage"]["value"] * config.tokenizer.codes
        assert used + metrics[f"{split}/dead_codes"]["value"] == pytest.approx(
            config.tokenizer.codes
        )
    assert Image.open(workdir / FOLDER / "worst_clips.png").height == 2 * 2 * WORST_CLIPS * 66 - 2
    assert "Worst training clips" in (workdir / FOLDER / "report.html").read_text()
    assert "held-out/psnr" in capsys.readouterr().out
    assert not workdir_lib.is_done(config, workdir, "evaluate"), (
        "it is to be done again with a transformer"
    )


def test_the_worst_clips_are_kept_each_once():
    real = np.zeros((12, 1, 2, 2, 3), np.uint8)
    errors = np.array(
        [5, 90, 10, 80, 20, 70, 30, 60, 40, 50, 200, 210], np.uint8
    )  # the last two repeat earlier clips
    rebuilt = real + errors[:, None, None, None, None]
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1))
    worst = WorstClips(
        jax.jit(lambda x, y: {"psnr": psnr(x / 255.0, y / 255.0)}), mesh, distinct=10
    )
    for i in range(0, 12, 4):
        worst(jnp.asarray(real[i : i + 4]), jnp.asarray(rebuilt[i : i + 4]))
    assert [video.max() for _, video in worst.rows()[1::2]] == [90, 80, 70, 60]
    assert [label.split()[0] for label, _ in worst.rows()[::2]] == ["1", "3", "5", "7"]
