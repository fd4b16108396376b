"""A tokenizer measured alone, before there is a transformer."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mebt_jax.errors import UserError
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.runtime_config import MeshConfig
from mebt_jax.stages import evaluate
from mebt_jax.stages.evaluation.evaluate_tokenizer import FOLDER, WORST_CLIPS, WorstClips

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.slow
def test_evaluate_measures_both_splits_and_shows_the_worst_clips(tokenizer_run, capsys):
    config, workdir = tokenizer_run.config, tokenizer_run.workdir
    workdir_lib.require(config, workdir, "evaluate")
    with pytest.raises(UserError, match="prior stage first"):
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
        used = metrics[f"{split}/usage"]["value"] * config.tokenizer.codebook_size
        assert used + metrics[f"{split}/dead_codes"]["value"] == pytest.approx(
            config.tokenizer.codebook_size
        )
    assert Image.open(workdir / FOLDER / "worst_clips.png").height == 2 * 2 * WORST_CLIPS * 66 - 2
    assert "Worst training clips" in (workdir / FOLDER / "report.html").read_text()
    assert "held-out/psnr" in capsys.readouterr().out
    # The stage runs again when there is a prior.
    assert not workdir_lib.is_done(config, workdir, "evaluate")


def test_the_worst_clips_are_kept_each_once():
    errors = np.array([5, 90, 10, 80, 20, 70, 30, 60, 40, 50], np.uint8)
    errors = np.append(errors, [200, 210]).astype(np.uint8)  # these two fill up the last batch
    reconstructed = np.broadcast_to(errors[:, None, None, None, None], (12, 1, 2, 2, 3))
    scores = -errors.astype(np.float32)
    worst = WorstClips(mesh_lib.make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1)))
    for start, count in ((0, 4), (4, 4), (8, 2)):
        batch = jnp.asarray(reconstructed[start : start + 4])
        worst.add({"psnr": scores[start : start + count]}, jnp.zeros_like(batch), batch)
    assert [video.max() for _, video in worst.rows()[1::2]] == [90, 80, 70, 60]
    assert [label.split()[0] for label, _ in worst.rows()[::2]] == ["1", "3", "5", "7"]
    assert all(video.max() == 0 for _, video in worst.rows()[::2])
