"""Sampling and evaluation end to end with a tiny model that was never trained."""

import dataclasses
import json
import shutil

import av
import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny_config import tiny_config
from untrained_runs import write_prior, write_tokenizer

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.masked_method import MaskedMethod
from mebt_jax.metrics import clip_numbers
from mebt_jax.runtime import checkpoints
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import evaluate, sample
from mebt_jax.stages.evaluation import evaluated_clips, run_page

CONFIG = from_config_dict(
    tiny_config(
        sample__clips=10,
        decoding__draft_steps=1,
        evaluate__window=4,
        evaluate__window_every=2,
        data__validation_clips=13,
        evaluate__clips=40,
    )
)

BRIGHTNESS = clip_numbers.clip_number(
    "brightness", lambda x: x.mean(axis=(1, 2, 3, 4)), "mean value of {clips}"
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with random weights in the checkpoints of both models, sampled and evaluated on 13
    held-out and 40 training clips.
    """
    path = tmp_path_factory.mktemp("run")
    # The time of this test is compilation.
    jax.config.update("jax_disable_most_optimizations", True)
    tokenizer = write_tokenizer(CONFIG, path)
    codebook = tokenizer["quantizer"]["codebook"][...]
    method = MaskedMethod.from_config(CONFIG)
    params = jax.jit(lambda: nnx.state(method.create(jax.random.key(1), codebook), nnx.Param))()
    write_prior(CONFIG, path, params, tokenizer)
    sample.run(CONFIG, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clip_numbers.CLIP_NUMBERS, "brightness", BRIGHTNESS)
        evaluate.run(CONFIG, path)
    yield path
    jax.config.update("jax_disable_most_optimizations", False)


def test_sample_writes_clips_codes_sheet_and_manifest(workdir):
    clips = workdir / "sample" / "clips"
    assert len(list(clips.glob("*.mp4"))) == len(list(clips.glob("*.gif"))) == 10
    with av.open(str(clips / "clip_0009.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == CONFIG.data.frames
    codes = np.load(workdir / "sample" / "tokens.npz")["codes"]
    assert codes.shape == (10, *CONFIG.grid) and codes.dtype == np.int32
    assert 0 <= codes.min() and codes.max() < CONFIG.tokenizer.codebook_size
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
        == checkpoints.read_meta(workdir / "prior" / "checkpoints")["tokenizer"]
    )
    assert workdir_lib.is_done(CONFIG, workdir, "sample")


def test_sampling_again_gives_the_same_clips_whatever_their_number(workdir, tmp_path):
    for name in ("tokenizer", "prior"):
        (tmp_path / name).symlink_to(workdir / name)
    sample.run(from_config_dict(tiny_config(sample__clips=3, decoding__draft_steps=1)), tmp_path)
    np.testing.assert_array_equal(
        np.load(tmp_path / "sample" / "tokens.npz")["codes"],
        np.load(workdir / "sample" / "tokens.npz")["codes"][:3],
    )


def test_evaluation_takes_the_clips_that_were_drawn_last(workdir, tmp_path):
    for name in ("tokenizer", "prior"):
        (tmp_path / name).symlink_to(workdir / name)
    shutil.copytree(workdir / "sample", tmp_path / "sample")
    for top_k in (3, CONFIG.decoding.top_k):
        decoding = dataclasses.replace(CONFIG.decoding, top_k=top_k)
        sample.run(dataclasses.replace(CONFIG, decoding=decoding), tmp_path)
        folder = workdir_lib.generated_folder(tmp_path)
        assert json.loads((folder / "manifest.json").read_text())["settings"]["top_k"] == top_k
    assert folder == tmp_path / "sample"


def test_evaluate_writes_every_number_with_its_definition_and_protocol(workdir):
    metrics = json.loads((workdir / "evaluate" / "metrics.json").read_text())
    curve, made_from = metrics.pop("over_time"), metrics.pop("made_from")
    for name, entry in metrics.items():
        assert np.isfinite(entry["value"]) and entry["definition"] and entry["count"] >= 1, name
        too_few = name in {
            f"generated/{share}" for share in ("precision", "recall", "density", "coverage")
        }
        # Half of 10 clips have no fifth neighbour.
        assert too_few != ("standard_error" in entry), name
        assert too_few or np.isfinite(entry["standard_error"]), name
    for name in (
        "generated/frechet",
        "generated/kernel",
        "reconstructed/frechet",
        "reconstructed/paired_frechet",
    ):
        # No clip is left out of a batch of 8, and none counts twice.
        count = 13 if "paired" in name else 10
        protocol = metrics[name]["protocol"]
        assert "not FVD" in protocol and f"N={count} a side" in protocol
    for name in (
        "generated/frechet",
        "generated/kernel",
        "reconstructed/paired_frechet",
        "prior/nll",
        "tokenizer/perplexity",
    ):
        assert {"value", "standard_error", "at_infinity", "real_floor", "repeats"} <= set(
            metrics[name]
        ), name
    assert metrics["prior/nll"]["count"] == 13 and metrics["prior/nll"]["real_floor_count"] == 40
    assert (
        "averaged weights" in metrics["prior/nll"]["definition"]
        and "averaged" in made_from["prior"]
    )
    # The weights that are not averaged, zeros, would give the logarithm.
    assert abs(metrics["prior/nll"]["value"] - np.log(CONFIG.tokenizer.codebook_size)) > 1e-5
    assert (
        made_from["tokenizer"]
        == checkpoints.read_meta(workdir / "prior" / "checkpoints")["tokenizer"]
    )
    assert {
        "tokenizer/psnr",
        "prior/nll",
        "generated/coverage",
        "memorisation/close_share",
        "physics_generated/score",
        "physics_reconstructed/score",
    } <= set(metrics)
    assert metrics["unigram/entropy"]["value"] <= np.log(CONFIG.tokenizer.codebook_size)
    assert metrics["unigram/entropy"]["value"] <= metrics["unigram/train_cross_entropy"]["value"]
    ratio = metrics["prior/nll"]["value"] / metrics["unigram/entropy"]["value"]
    assert metrics["nll_over_unigram_entropy"]["value"] == pytest.approx(ratio)
    assert curve["first_frame"] == [0, 2, 4] and curve["count"] == curve["real_floor_count"] == 10
    assert all(
        len(curve[name]) == 3 for name in ("value", "standard_error", "real_floor", "at_infinity")
    )


def test_a_plain_number_of_clips_is_one_entry_of_a_table(workdir):
    metrics = json.loads((workdir / "evaluate" / "metrics.json").read_text())
    for kind, count in (("generated", 10), ("reconstructed", 40)):
        entry = metrics[f"{kind}/brightness"]
        assert entry["definition"] == f"mean value of {kind} clips"
        assert entry["count"] == count and entry["real_floor_count"] == 13
        assert 0 < entry["value"] < 1 and 0 < entry["real_floor"] < 1


def test_evaluate_shows_real_reconstructed_and_generated_clips(workdir):
    rows = 2 * run_page.PICTURED_CLIPS + 8
    assert Image.open(workdir / "evaluate" / "contact_sheet.png").height == rows * 66 - 2
    # The loss of both training stages, a panel for each.
    assert Image.open(workdir / "evaluate" / "curves.png").size == (840, 300)
    records = run_page.both_curves(workdir)
    for stage in ("tokenizer", "prior"):
        name = f"{stage}/train/loss"
        losses = [record[name] for record in records if name in record]
        np.testing.assert_allclose(losses, [1.0, 0.9, 0.8])
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
            "Prior: step 3, averaged weights",
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
