"""Alerts from logged numbers: none in a healthy run, one sentence for each failure."""

import dataclasses
import re

import pytest

from mebt_jax.config import default_config, from_config_dict
from mebt_jax.tokenizer.training import training_alerts

CONFIG = from_config_dict(default_config()).tokenizer
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
    """All sentences over healthy lines, then lines with each of the changes."""
    state, found = training_alerts.AlertState(), []
    lines = [HEALTHY] * 3 + [
        HEALTHY | {f"train/{name}": value for name, value in change.items()} for change in changes
    ]
    for i, line in enumerate(lines):
        for record in (line | {"step": 100 * i}, ONLY_VALIDATED):
            state, new = training_alerts.check(state, record, config, tokens=16_384)
            found += new
    return found


def test_a_healthy_run_and_a_bad_moment_raise_no_alert():
    assert sentences(*[{}] * 20) == []
    bad = {"perplexity": 5.0, "quantization_error": 3.0, "clip_loss": 0.0}
    assert sentences(bad, bad, {}, bad, bad, {}) == []
    assert (
        sentences(*[{"quantization_error": 1.5}] * 9) == []
    )  # they drew together, and did not move away


@pytest.mark.parametrize(
    "change, words",
    [
        ({"perplexity": 1.0}, "uses its codebook as if it had 1.0 of 16384 tokens"),
        (
            {"perplexity": 200.0},
            "uses its codebook as if it had 200.0 of 16384 tokens .at best 900.0",
        ),
        (
            {"clip_loss": 0.01, "clip_logits/real": 4.0},
            "discriminator of clips has won .loss 0.010, mean logit 4.00 "
            ".*adversarial.learning_rate",
        ),
        ({"frame_loss": 0.01}, "discriminator of frames has won"),
        (
            {"quantization_error": 1.5, "commitment": 0.1},
            "features run away from the codebook .*commitment_weight",
        ),
        ({"commitment": 3.0}, "commitment 3, at best 0.02"),
    ],
)
def test_what_goes_wrong_is_reported_once(change, words):
    found = sentences(*[change] * 9)
    assert len(found) == 1 and found[0].startswith("at step 500 ")
    assert re.search(words, found[0])


def test_a_discriminator_that_still_learns_alone_may_win():
    assert sentences(*[{"clip_loss": 0.0, "adversarial_scale": 0.0}] * 9) == []


@pytest.mark.parametrize(
    "changes, advice",
    [
        ({}, "lower config.tokenizer.training.learning_rate or raise"),
        ({"restart_threshold": 0.0}, "restart_threshold above 0"),
        ({"quantizer": "lfq"}, "raise config.tokenizer.entropy_weight"),
    ],
)
def test_the_advice_for_low_usage_follows_the_quantizer(changes, advice):
    config = dataclasses.replace(CONFIG, **changes)
    assert advice in sentences(*[{"perplexity": 2.0}] * 3, config=config)[0]


@pytest.mark.parametrize("quantizer, alerts", [("gradient", 1), ("fsq", 0), ("lfq", 0)])
def test_features_far_from_a_fixed_codebook_are_no_alert(quantizer, alerts):
    far = {"quantization_error": 1.5, "commitment": 0.1}
    config = dataclasses.replace(CONFIG, quantizer=quantizer)
    assert len(sentences(*[far] * 3, config=config)) == alerts
