"""Sampling and evaluation end to end on a tiny run whose weights need not be trained."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import data, evaluate, sample, tokenizer, transformer
from tests.tiny_config import tiny_config

CONFIG = from_config_dict(tiny_config(tokenizer__training__steps=2, transformer__training__steps=2, sample__clips=10))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run after all five stages."""
    path = tmp_path_factory.mktemp("run")
    for stage in (data, tokenizer, transformer, sample, evaluate):
        stage.run(CONFIG, path)
    return path


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
    assert manifest["passes"] == 4 and manifest["passes_by_kind"] == {"bootstrap": 0, "draft": 2, "revise": 2}
    done = json.loads((workdir / "tokenizer" / "done.json").read_text())
    assert manifest["tokenizer"] == done["tokenizer"]
    assert workdir_lib.is_done(CONFIG, workdir, "sample")


def test_sampling_again_gives_the_same_clips_whatever_their_number(workdir, tmp_path):
    for name in ("data", "tokenizer", "transformer"):
        (tmp_path / name).symlink_to(workdir / name)
    fewer = from_config_dict(tiny_config(tokenizer__training__steps=2, transformer__training__steps=2, sample__clips=3))
    sample.run(fewer, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "sample" / "tokens.npz")["codes"],
                                  np.load(workdir / "sample" / "tokens.npz")["codes"][:3])


def test_evaluate_writes_every_number_with_its_definition(workdir):
    metrics = json.loads((workdir / "evaluate" / "metrics.json").read_text())
    assert set(metrics) == set(evaluate.DEFINITIONS)
    for name, entry in metrics.items():
        assert np.isfinite(entry["value"]), name
        assert "{" not in entry["definition"]
    assert metrics["unigram/entropy"]["value"] <= np.log(CONFIG.tokenizer.codes)
    assert metrics["unigram/entropy"]["value"] <= metrics["unigram/train_cross_entropy"]["value"]
    ratio = metrics["transformer/nll"]["value"] / metrics["unigram/entropy"]["value"]
    assert metrics["nll_over_unigram_entropy"]["value"] == pytest.approx(ratio)
    assert "not FVD" in metrics["distance/generated"]["definition"]


def test_evaluate_shows_real_reconstructed_and_generated_clips(workdir):
    rows = 2 * evaluate.PICTURED_CLIPS + 8
    assert Image.open(workdir / "evaluate" / "contact_sheet.png").height == rows * 66 - 2
    assert (workdir / "evaluate" / "curves.png").stat().st_size > 5_000


def test_clips_of_another_tokenizer_are_refused(workdir):
    with pytest.raises(UserError, match="another|generated for tokenizer"):
        evaluate.load_generated(workdir / "sample", "0123")
