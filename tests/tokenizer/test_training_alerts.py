"""The watch over logged numbers: silent over a healthy run, one sentence for each thing that goes
wrong.
"""

import dataclasses
import re

import pytest

from configs import base
from mebt_jax.config import from_config_dict
from mebt_jax.tokenizer.training import training_alerts

CONFIG = from_config_dict(base.get_config()).tokenizer
HEALTHY = {
    "train/perplexity": 900.0,
    "train/commitment": 0.02,
    "train/quantization_error": 0.2,
    "train/adversarial_scale": 0.1,
    "train/frame_loss": 0.8,
    "train/frame_logits/real": 0.3,
    "train/frame_logits/fake": -0.3,
    "train/clip_loss": 0.8,
    "train/clip_logits/real": 0.3,
    "train/clip_logits/fake": -0.3,
}
ONLY_VALIDATED = {"step": 5, "validation/psnr": 20.0}


def sentences(*changes, config=CONFIG):
    """All that is said over healthy lines, then lines with each of the changes."""
    state, said = training_alerts.Watch(), []
    lines = [HEALTHY] * 3 + [
        HEALTHY | {f"train/{name}": value for name, value in change.items()} for change in changes
    ]
    for i, line in enumerate(lines):
        for record in (line | {"step": 100 * i}, ONLY_VALIDATED):
            state, new = training_alerts.look(state, record, config, tokens=16_384)
            said += new
    return said


def test_a_healthy_run_and_a_bad_moment_raise_no_alarm():
    assert sentences(*[{}] * 20) == []
    bad = {"perplexity": 5.0, "quantization_error": 3.0, "clip_loss": 0.0}
    assert sentences(bad, bad, {}, bad, bad, {}) == []
    assert (
        sentences(*[{"quantization_error": 1.5}] * 9) == []
    )  # they drew together, and did not move away


@pytest.mark.parametrize(
    "change, words",
    [
        ({"perplexity": 1.0}, "uses its codes as if there were 1.0 of 16384"),
        ({"perplexity": 200.0}, "uses its codes as if there were 200.0 of 16384 .at best 900.0"),
        (
            {"clip_loss": 0.01, "clip_logits/real": 4.0},
            "discriminator of clips has won .loss 0.010, mean logit 4.00 "
            ".*adversarial.learning_rate",
        ),
        ({"frame_loss": 0.01}, "discriminator of frames has won"),
        (
            {"quantization_error": 1.5, "commitment": 0.1},
            "features run away from the codes .*commitment_weight",
        ),
        ({"commitment": 3.0}, "commitment 3, at best 0.02"),
    ],
)
def test_what_goes_wrong_is_said_once(change, words):
    said = sentences(*[change] * 9)
    assert len(said) == 1 and said[0].startswith("at step 500 ")
    assert re.search(words, said[0])


def test_a_discriminator_that_still_learns_alone_may_win():
    assert sentences(*[{"clip_loss": 0.0, "adversarial_scale": 0.0}] * 9) == []


def test_the_mend_for_few_codes_follows_the_config():
    assert (
        "restart_threshold above 0"
        in sentences(
            *[{"perplexity": 2.0}] * 3, config=dataclasses.replace(CONFIG, restart_threshold=0.0)
        )[0]
    )
