"""What a report says of two sets of features: every number with its noise, its floor and its
protocol.
"""

import json

import numpy as np
import pytest

from mebt_jax.metrics import results
from mebt_jax.metrics.protocols import PROTOCOLS, ClipForm
from mebt_jax.metrics.uncertainty import Estimate

FORM = ClipForm(16, 64, 1)
FAKE, REAL, OTHER = (
    np.random.default_rng(0).standard_normal((3, 40, 6)) + np.array([0.5, 0, 0])[:, None, None]
)


def test_every_distance_carries_noise_floor_and_protocol():
    found = results.distances(PROTOCOLS["i3d"], FAKE, REAL, OTHER, FORM, "generated", "drawn")
    assert list(found) == [
        f"generated/{name}"
        for name in ("frechet", "kernel", "precision", "recall", "density", "coverage")
    ]
    for name, result in found.items():
        assert result.estimate.standard_error > 0 and result.estimate.real_floor_count == 40, name
        assert (
            result.protocol.startswith("i3d: FVD")
            and "N=40" in result.protocol
            and result.protocol.endswith("reals: drawn")
        )
    frechet = found["generated/frechet"].estimate
    assert frechet.value > frechet.at_infinity and frechet.value > 2 * frechet.real_floor
    kernel = found["generated/kernel"].estimate
    assert kernel.at_infinity == kernel.value  # it has no bias
    assert (
        results.distances(PROTOCOLS["i3d"], FAKE[:1], REAL, OTHER, FORM, "generated", "drawn") == {}
    )


def test_without_other_real_clips_the_floor_is_of_halves():
    for name, result in results.distances(
        PROTOCOLS["i3d"], FAKE, REAL, None, FORM, "generated", "drawn"
    ).items():
        assert result.estimate.real_floor is not None and result.estimate.real_floor_count == 20, (
            name
        )


def test_json_leaves_out_what_is_not_defined_and_the_table_has_a_line_each():
    found = {
        "a/psnr": results.mean(np.array([1.0, np.nan, 3.0]), "dB", np.array([4.0])),
        "b": results.Result(Estimate(2.0, 5, 1), "two"),
    }
    plain = json.loads(json.dumps(results.to_json(found)))
    assert plain == {
        "a/psnr": {
            "value": 2.0,
            "count": 2,
            "repeats": 1,
            "standard_error": 1.0,
            "at_infinity": 2.0,
            "real_floor": 4.0,
            "real_floor_count": 1,
            "definition": "dB",
        },
        "b": {"value": 2.0, "count": 5, "repeats": 1, "definition": "two"},
    }
    lines = results.table(found).splitlines()
    assert len(lines) == 3 and "±" in lines[1] and "±" not in lines[2]


def test_the_curve_grows_where_later_windows_drift_away():
    drifting = FAKE[:, None] + np.arange(3)[:, None]  # [n, windows, D]
    windows = ([0, 2, 4], ClipForm(4, 64, 1), "drawn")
    curve = results.window_curve(
        PROTOCOLS["i3d"], drifting, REAL[:, None], OTHER[:, None], *windows
    )
    over_time = curve["over_time"]
    first = results.distances(PROTOCOLS["i3d"], FAKE, REAL, OTHER, FORM, "generated", "drawn")[
        "generated/frechet"
    ].estimate
    assert over_time["first_frame"] == [0, 2, 4] and over_time["value"] == sorted(
        over_time["value"]
    )
    for name in ("value", "standard_error", "real_floor", "at_infinity"):
        assert (
            over_time[name][0] == pytest.approx(getattr(first, name)) and len(over_time[name]) == 3
        ), name
    assert "4 frames of 64x64" in over_time["protocol"]
    points = results.curve_points(curve)
    assert [point["step"] for point in points] == [0, 2, 4]
    assert (
        points[1]["real clips/distance of the window"]
        < points[1]["generated/distance of the window"]
    )
    assert results.window_curve(PROTOCOLS["i3d"], None, None, None, *windows) == {}
