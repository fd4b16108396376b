"""Protocols name every choice, and a set that is too small for one is refused."""

import dataclasses

import pytest

from mebt_jax.errors import UserError
from mebt_jax.metrics import protocols
from mebt_jax.metrics.networks.resize import RULES
from mebt_jax.metrics.protocols import PROTOCOLS, ClipForm, Protocol

FORM = ClipForm(16, 128, 1)


def test_the_paper_draws_its_reals_and_its_numbers_by_data_set_and_length():
    sky, ucf = (
        protocols.for_data("mebt-paper", "validation", 16),
        protocols.for_data("mebt-paper", "train", 128),
    )
    # TATS takes the training split of every set.
    assert protocols.for_data("tats", "validation", 16).reals == "train"
    assert (sky.clips, sky.repeats, sky.reals) == (2048, 10, "validation")
    assert (ucf.clips, ucf.repeats, ucf.reals) == (512, 5, "train")
    assert sky.epsilon == 1e-5 and sky.resize == "half_pixel" and sky.unbiased


def test_every_choice_that_moves_the_number_shows_in_the_string():
    texts = {protocol.describe(2048, FORM, 1, "training") for protocol in PROTOCOLS.values()}
    assert len(texts) == len(PROTOCOLS)
    text = PROTOCOLS["styleganv"].describe(2048, FORM, 1, "training")
    for choice in (
        "styleganv",
        "FVD",
        "eps 0.001",
        "half_pixel",
        "covariance over N,",
        "16 frames of 128x128,",
        "N=2048",
        "reals: training, half",
    ):
        assert choice in text
    assert "16 frames of 64x64, one of every 4," in PROTOCOLS["tats"].describe(
        2048, ClipForm(16, 64, 4), 1, "training"
    )
    assert "not FVD" in PROTOCOLS[protocols.WEIGHT_FREE].describe(64, FORM, 1, "")
    assert not PROTOCOLS[protocols.WEIGHT_FREE].needs_weights and PROTOCOLS["tats"].needs_weights


# Another value of each field that changes a number.
CHANGES = {
    "network": "random",
    "epsilon": 1e-3,
    "resize": "corner",
    "unbiased": False,
    "mirrored": True,
    "name": "another",
}
ARGUMENTS = {"clips", "repeats", "reals"}  # `describe` is given what these come to


def test_protocols_that_differ_in_any_field_have_different_strings():
    assert {field.name for field in dataclasses.fields(Protocol)} == {*CHANGES, *ARGUMENTS}
    texts = {PROTOCOLS["tats"].describe(2048, FORM, 1, "training")}
    for field, value in CHANGES.items():
        assert getattr(PROTOCOLS["tats"], field) != value
        changed = dataclasses.replace(PROTOCOLS["tats"], **{field: value})
        texts.add(changed.describe(2048, FORM, 1, "training"))
    for field in dataclasses.fields(ClipForm):
        form = dataclasses.replace(FORM, **{field.name: 3})
        texts.add(PROTOCOLS["tats"].describe(2048, form, 1, "training"))
    for count, repeats, reals in ((512, 1, "training"), (2048, 10, "training"), (2048, 1, "other")):
        texts.add(PROTOCOLS["tats"].describe(count, FORM, repeats, reals))
    assert len(texts) == 1 + len(CHANGES) + 3 + 3


def test_every_protocol_has_values_that_are_known():
    for protocol in PROTOCOLS.values():
        assert protocol.network in ("i3d", "random") and protocol.resize in RULES
        assert protocol.reals in ("train", "validation", "data")
    styleganv, paper = PROTOCOLS["styleganv"], PROTOCOLS["mebt-paper"]
    assert styleganv.mirrored and not PROTOCOLS["tats"].mirrored
    assert not styleganv.unbiased and paper.unbiased


def test_unknown_names_and_small_sets_get_one_sentence():
    with pytest.raises(UserError, match="did you mean styleganv?"):
        protocols.for_data("stylegan-v", "validation", 16)
    with pytest.raises(UserError, match="2048 clips a side, but there are 100 generated"):
        protocols.check_counts(PROTOCOLS["tats"], real=4000, fake=100)
    protocols.check_counts(PROTOCOLS["i3d"], real=10, fake=3)
