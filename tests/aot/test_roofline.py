import dataclasses
import types

import pytest

from mebt_jax.aot import chips, roofline
from mebt_jax.errors import UserError

V5E = chips.of_topology("v5e:4x4")


def program(clips, data, fsdp, sequence, resident, field="config.prior.training.batch_size"):
    mesh = types.SimpleNamespace(
        shape={"data": data, "fsdp": fsdp, "sequence": sequence}, size=data * fsdp * sequence
    )
    return types.SimpleNamespace(
        name="step", mesh=mesh, clips=clips, resident_bytes=resident, batch_field=field
    )


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ((16, 16, 1, 1, 12e9), "set config.mesh.data=1 and config.mesh.fsdp=16"),
        ((48, 16, 1, 1, 1e9), "raise config.prior.training.microbatches up to 3"),
        ((48, 16, 1, 1, 1e9, "config.sample.batch_size"), "lower config.sample.batch_size"),
        ((16, 16, 1, 1, 1e9), "set config.mesh.sequence=2"),
    ],
)
def test_what_does_not_fit_says_what_to_change(settings, fix):
    error = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm."
    )
    sentence = roofline.what_to_change(program(*settings), V5E, error)
    assert fix in sentence and "needs 20.50G of 15.75G" in sentence and "\n" not in sentence


def test_the_time_is_that_of_the_slower_resource_and_the_network():
    report = roofline.Report(
        "step",
        16,
        V5E,
        48,
        1,
        1e9,
        1e9,
        flops=197e12,
        useful_flops=98.5e12,
        memory_traffic=819e9 / 2,
        sent={"all-reduce": 20e9},
        between_slices=0.0,
    )
    assert report.seconds == pytest.approx(1.1)
    assert report.utilization == pytest.approx(0.5 / 1.1)
    assert roofline.clips_per_second([report]) == pytest.approx(48 / 1.1)
    assert (
        report.parts["interconnect"]
        < dataclasses.replace(report, between_slices=20e9).parts["interconnect"]
    )


def test_an_unknown_generation_is_one_sentence():
    with pytest.raises(
        UserError,
        match=r"^--topology=v9:2x2 begins with no known generation; give one of v4, [^\n]*\.$",
    ):
        chips.of_topology("v9:2x2")
