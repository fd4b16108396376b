"""Sampling and evaluation end to end with a tiny model that was never trained."""

import json
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mebt_jax.config import from_config_dict, to_dict
from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.train_state import TrainState
from mebt_jax.stages import evaluate, sample
from mebt_jax.stages.evaluation import evaluated_clips
from mebt_jax.stages.prior import new_transformer
from mebt_jax.stages.tokenizer import tokenizer_hash
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer
from tests.tiny_config import tiny_config

CONFIG = from_config_dict(
    tiny_config(
        sample__clips=10,
        sample__draft_steps=1,
        evaluate__window=4,
        evaluate__window_every=2,
        data__validation_clips=13,
        evaluate__clips=40,
    )
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with random weights in the checkpoints of both models, sampled and evaluated on 13
    held-out and 40 training clips.
    """
    path = tmp_path_factory.mktemp("run")
    jax.config.update(
        "jax_disable_most_optimizations", True
    )  # the time of this test is compilation
    tokenizer_params = jax.jit(
        lambda: nnx.state(Tokenizer(CONFIG.tokenizer, rngs=nnx.Rngs(0)), nnx.Param)
    )()
    codebook = quantizers.init_codebook(CONFIG.tokenizer, jax.random.key(0))
    write_checkpoint(path, "tokenizer", tokenizer_params, codebook)
    transformer_params = jax.jit(
        lambda: nnx.state(
            new_transformer(CONFIG, jax.random.key(1), codebook.embeddings), nnx.Param
        )
    )()
    write_checkpoint(
        path,
        "transformer",
        transformer_params,
        tokenizer=tokenizer_hash(tokenizer_params, codebook),
    )
    sample.run(CONFIG, path)
    evaluate.run(CONFIG, path)
    yield path
    jax.config.update("jax_disable_most_optimizations", False)


def write_checkpoint(
    path: Path,
    stage: str,
    params: nnx.State,
    statistics: quantizers.Codebook | None = None,
    **meta: str,
) -> None:
    plain = jax.tree.map(
        jnp.zeros_like, params
    )  # what a stage would make of the weights that are not averaged shows at once
    state = TrainState(
        step=jnp.int32(3), params=plain, ema=params, opt_state=(), statistics=statistics
    )
    meta |= {"config": to_dict(CONFIG)}
    with checkpoints.Checkpointer(path / stage / "checkpoints", meta, keep_every=1) as checkpointer:
        checkpointer.save(3, state, {}, metric=None)
    with telemetry.MetricsLog(path / stage, step=3) as log:
        for step in range(3):
            log.write(step, {"train/loss": 1.0 - 0.1 * step})


def test_sample_writes_clips_codes_sheet_and_manifest(workdir):
    clips = workdir / "sample" / "clips"
    assert len(list(clips.glob("*.mp4"))) == len(list(clips.glob("*.gif"))) == 10
    with av.open(str(clips / "clip_0009.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == CONFIG.data.frames
    codes = np.load(workdir / "sample" / "tokens.npz")["codes"]
    assert codes.shape == (10, *CONFIG.grid) and codes.dtype == np.int32
    assert 0 <= codes.min() and codes.max() < CONFIG.tokenizer.codes
    assert Image.open(workdir / "sample" / "contact_sheet.png").height >= 10 * 64
    manifest = json.loads((workdir / "sample" / "manifest.json").read_text())
    assert manifest["passes"] == 3 and manifest["passes_by_kind"] == {
        "bootstrap": 0,
        "draft": 1,
        "remask": 0,
        "revise": 2,
    }
    assert (
        manifest["tokenizer"]
        == checkpoints.read_meta(workdir / "transformer" / "checkpoints")["tokenizer"]
    )
    assert workdir_lib.is_done(CONFIG, workdir, "sample")


def test_sampling_again_gives_the_same_clips_whatever_their_number(workdir, tmp_path):
    for name in ("tokenizer", "transformer"):
        (tmp_path / name).symlink_to(workdir / name)
    sample.run(from_config_dict(tiny_config(sample__clips=3, sample__draft_steps=1)), tmp_path)
    np.testing.assert_array_equal(
        np.load(tmp_path / "sample" / "tokens.npz")["codes"],
        np.load(workdir / "sample" / "tokens.npz")["codes"][:3],
    )


def test_evaluate_writes_every_number_with_its_definition_and_protocol(workdir):
    metrics = json.loads((workdir / "evaluate" / "metrics.json").read_text())
    curve, made_from = metrics.pop("over_time"), metrics.pop("made_from")
    for name, entry in metrics.items():
        assert np.isfinite(entry["value"]) and entry["definition"] and entry["count"] >= 1, name
        too_few = name in {
            f"generated/{share}" for share in ("precision", "recall", "density", "coverage")
        }
        assert too_few != ("standard_error" in entry), (
            name
        )  # half of 10 clips have no fifth neighbour
        assert too_few or np.isfinite(entry["standard_error"]), name
    for name in (
        "generated/frechet",
        "generated/kernel",
        "reconstructed/frechet",
        "reconstructed/paired_frechet",
    ):
        count = (
            13 if "paired" in name else 10
        )  # no clip is left out of a batch of 8, and none counts twice
        assert (
            "not FVD" in metrics[name]["protocol"]
            and f"N={count} a side" in metrics[name]["protocol"]
        )
    for name in (
        "generated/frechet",
        "generated/kernel",
        "reconstructed/paired_frechet",
        "transformer/nll",
        "tokenizer/perplexity",
    ):
        assert {"value", "standard_error", "at_infinity", "real_floor", "repeats"} <= set(
            metrics[name]
        ), name
    assert (
        metrics["transformer/nll"]["count"] == 13
        and metrics["transformer/nll"]["real_floor_count"] == 40
    )
    assert (
        "averaged weights" in metrics["transformer/nll"]["definition"]
        and "averaged" in made_from["transformer"]
    )
    assert (
        abs(metrics["transformer/nll"]["value"] - np.log(CONFIG.tokenizer.codes)) > 1e-5
    )  # what the plain weights, zeros, give
    assert (
        made_from["tokenizer"]
        == checkpoints.read_meta(workdir / "transformer" / "checkpoints")["tokenizer"]
    )  # the averages'
    assert {
        "tokenizer/psnr",
        "transformer/nll",
        "generated/coverage",
        "memorisation/close_share",
        "physics_generated/score",
        "physics_reconstructed/score",
    } <= set(metrics)
    assert metrics["unigram/entropy"]["value"] <= np.log(CONFIG.tokenizer.codes)
    assert metrics["unigram/entropy"]["value"] <= metrics["unigram/train_cross_entropy"]["value"]
    ratio = metrics["transformer/nll"]["value"] / metrics["unigram/entropy"]["value"]
    assert metrics["nll_over_unigram_entropy"]["value"] == pytest.approx(ratio)
    assert curve["first_frame"] == [0, 2, 4] and curve["count"] == curve["real_floor_count"] == 10
    assert all(
        len(curve[name]) == 3 for name in ("value", "standard_error", "real_floor", "at_infinity")
    )


def test_evaluate_shows_real_reconstructed_and_generated_clips(workdir):
    rows = 2 * evaluate.PICTURED_CLIPS + 8
    assert Image.open(workdir / "evaluate" / "contact_sheet.png").height == rows * 66 - 2
    assert (workdir / "evaluate" / "curves.png").stat().st_size > 5_000
    page = (workdir / "evaluate" / "report.html").read_text()
    assert all(
        text in page
        for text in (
            "best: clip",
            "worst: clip",
            "reconstructed 3",
            "Quality over the length",
            "Memorisation",
            "nearest to it",
            "Transformer: step 3, averaged weights",
        )
    )


def test_a_protocol_that_asks_for_weights_or_clips_that_are_not_here_is_refused_before_any_work(
    workdir,
):
    for protocol, message in (
        ("i3d", "weights are not here.*weight-free"),
        ("tats", "weights are not here"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.run(from_config_dict(tiny_config(evaluate__protocol=protocol)), workdir)


def test_clips_of_another_tokenizer_are_refused(workdir):
    with pytest.raises(UserError, match="--stage=sample"):
        evaluated_clips.load_generated(workdir / "sample", "0123")
