"""Every quantizer and the causal tokenizer through all stages: data, tokenizer, transformer,
sample, evaluate.
"""

import json
import math

import numpy as np
import pytest
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.stages import data, evaluate, prior, sample, tokenizer

CHOICES = {
    "gradient": {"tokenizer__quantizer": "gradient"},
    "fsq": {
        "tokenizer__quantizer": "fsq",
        "tokenizer__levels": (4, 2, 2),
        "tokenizer__code_width": 3,
    },
    "lfq": {"tokenizer__quantizer": "lfq", "tokenizer__code_width": 4},
    "causal": {"tokenizer__causal": True, "tokenizer__norm": "layer", "data__frames": 9},
    "images": {"tokenizer__causal": True, "tokenizer__norm": "layer", "data__frames": 1},
}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("choice", CHOICES)
def test_the_whole_pipeline_runs_with(choice, tmp_path):
    overrides = {"mesh__data": 1, "evaluate__window": 4, "evaluate__window_every": 2} | CHOICES[
        choice
    ]
    config = from_config_dict(tiny_config(**overrides))
    for stage in (data, tokenizer, prior, sample):
        stage.run(config, tmp_path)
    if choice != "images":  # distances over time need clips of some length
        evaluate.run(config, tmp_path)
    codes = np.load(tmp_path / "sample" / "tokens.npz")["codes"]
    assert (
        codes.shape == (8, *config.grid)
        and 0 <= codes.min()
        and codes.max() < config.tokenizer.codebook_size
    )
    for line in (tmp_path / "tokenizer" / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert all(math.isfinite(value) for value in values.values())
        assert any(name.endswith("/dead") for name in values) and any(
            name.endswith("/usage") for name in values
        )
    # The checkpoint is found again, under the same name; one of another kind is refused.
    mesh = tokenizer.mesh_lib.make_mesh(config.mesh)
    done = json.loads((tmp_path / "tokenizer" / "done.json").read_text())
    assert tokenizer.load_tokenizer(config, tmp_path, mesh).content_hash == done["tokenizer"]
    with pytest.raises(UserError, match="The tokenizer in .* has (quantizer|causal)"):
        tokenizer.load_tokenizer(from_config_dict(tiny_config(mesh__data=1)), tmp_path, mesh)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_batch_norm_trains_against_discriminators_in_microbatches(tmp_path):
    adversarial = {"frame_weight": 1.0, "video_weight": 1.0, "start": 2, "warmup": 0, "channels": 4}
    config = from_config_dict(
        tiny_config(
            mesh__data=1,
            tokenizer__norm="batch",
            tokenizer__patch=(1, 1, 1),
            tokenizer__training__microbatches=2,
            tokenizer__training__steps=4,
            **{f"tokenizer__adversarial__{name}": value for name, value in adversarial.items()},
        )
    )
    data.run(config, tmp_path)
    tokenizer.run(config, tmp_path)
    for line in (tmp_path / "tokenizer" / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line).values())
    trained = tokenizer.load_tokenizer(config, tmp_path, tokenizer.mesh_lib.make_mesh(config.mesh))
    assert (
        trained.content_hash
        == json.loads((tmp_path / "tokenizer" / "done.json").read_text())["tokenizer"]
    )
    norm = trained.params["decoder"]["norm"]
    assert (
        np.abs(norm["mean"][...]).min() > 0 and np.abs(norm["variance"][...] - 1).min() > 0
    )  # 0 and 1 at the start


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_a_causal_model_predicts_and_extends(tmp_path):
    overrides = {"mesh__data": 1, **CHOICES["causal"]}
    config = from_config_dict(tiny_config(**overrides))
    for stage in (data, tokenizer, prior):
        stage.run(config, tmp_path)
    extend = {"sample__task": "extend", "sample__frames": 21, "sample__overlap_frames": 5}
    with pytest.raises(
        UserError, match="formats is npz, but videos of any length .* as mp4 or frames"
    ):
        sample.run(
            from_config_dict(tiny_config(**overrides, **extend, sample__formats=("npz",))), tmp_path
        )
    sample.run(
        from_config_dict(tiny_config(**overrides, **extend, sample__formats=("frames",))), tmp_path
    )
    assert len(list((tmp_path / "sample" / "extend" / "clips" / "clip_0000").iterdir())) == 21
