"""Trainings that are driven into failure on purpose: the run reports what goes wrong."""

import pytest
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.stages import data
from mebt_jax.stages import tokenizer as stage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler")]
RUN = {
    "mesh__data": 1,
    "tokenizer__training__steps": 60,
    "tokenizer__training__log_every": 4,
    "tokenizer__training__validate_every": 1000,
    "tokenizer__training__checkpoint_every": 1000,
    "tokenizer__restart_threshold": 0.0,
    "tokenizer__training__grad_clip_norm": 0.0,
}
ADVERSARIAL = {
    f"tokenizer__adversarial__{name}": value
    for name, value in {
        "video_weight": 1.0,
        "channels": 8,
        "layers": 2,
        "start": 4,
        "warmup": 4,
        "ramp": 1,
    }.items()
}
FAILURES = {
    # Nothing holds the features at the codebook, and the codebook cannot follow.
    "run away from the codebook": {
        "tokenizer__commitment_weight": 0.0,
        "tokenizer__codebook_decay": 0.9999,
        "tokenizer__training__learning_rate": 0.03,
    },
    # All kernels decay to nothing, so all features become the same, and so do their tokens.
    "uses its codebook as if": {"tokenizer__training__weight_decay": 500.0},
    # A tokenizer of two tokens that hardly moves, against a discriminator that runs.
    "discriminator of clips has won": ADVERSARIAL
    | {
        "tokenizer__codebook_size": 2,
        "tokenizer__training__learning_rate": 1e-9,
        "tokenizer__adversarial__learning_rate": 3e-3,
        "tokenizer__adversarial__lecam_weight": 0.0,
    },
}


@pytest.mark.parametrize("words", FAILURES)
def test_a_run_reports_what_goes_wrong(words, tmp_path, capsys):
    config = from_config_dict(tiny_config(**RUN, **FAILURES[words]))
    data.run(config, tmp_path)
    stage.run(config, tmp_path)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert sum(words in line for line in warnings) == 1, warnings


def test_a_sound_run_reports_nothing(tmp_path, capsys):
    config = from_config_dict(
        tiny_config(**RUN, **ADVERSARIAL, tokenizer__adversarial__learning_rate=1e-4)
    )
    data.run(config, tmp_path)
    stage.run(config, tmp_path)
    assert "WARNING" not in capsys.readouterr().err
