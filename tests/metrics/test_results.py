"""What a report says of two sets of features: every number with its noise, its floor and its protocol."""

import json

import numpy as np

from mebt_jax.config import EvaluateConfig
from mebt_jax.metrics import results
from mebt_jax.metrics.protocols import PROTOCOLS

FAKE, REAL, OTHER = np.random.default_rng(0).standard_normal((3, 40, 6)) + np.array([0.5, 0, 0])[:, None, None]


def test_every_distance_carries_noise_floor_and_protocol():
    found = results.distances(PROTOCOLS["i3d"], FAKE, REAL, OTHER, 16, "generated", "drawn")
    assert list(found) == [f"generated/{name}" for name in ("frechet", "kernel", "precision", "recall", "density", "coverage")]
    for name, result in found.items():
        assert result.estimate.standard_error > 0 and result.estimate.real_floor_count == 40, name
        assert result.protocol.startswith("i3d: FVD") and "N=40" in result.protocol and result.protocol.endswith("reals: drawn")
    frechet = found["generated/frechet"].estimate
    assert frechet.value > frechet.at_infinity and frechet.value > 2 * frechet.real_floor
    assert found["generated/kernel"].estimate.at_infinity is None
    assert results.distances(PROTOCOLS["i3d"], FAKE[:1], REAL, OTHER, 16, "generated", "drawn") == {}


def test_json_leaves_out_what_is_not_defined_and_the_table_has_a_line_each():
    found = {"a/psnr": results.mean(np.array([1.0, np.nan, 3.0]), "dB"), "b": results.number(2, "two", 5)}
    plain = json.loads(json.dumps(results.to_json(found)))
    assert plain == {"a/psnr": {"value": 2.0, "count": 2, "repeats": 1, "standard_error": 1.0, "definition": "dB"},
                     "b": {"value": 2.0, "count": 5, "repeats": 1, "definition": "two"}}
    lines = results.table(found).splitlines()
    assert len(lines) == 3 and "±" in lines[1] and "±" not in lines[2]


def test_the_curve_grows_where_later_windows_drift_away():
    config = EvaluateConfig(**{name: 0 for name in EvaluateConfig.__dataclass_fields__} | {"window": 4, "window_every": 2})
    drifting = FAKE[:, None] + np.arange(3)[:, None]  # [n, windows, D]
    curve = results.window_curve(PROTOCOLS["i3d"], {"windows": drifting}, {"windows": REAL[:, None]}, config, 8, "drawn")
    values = curve["over_time"]["value"]
    assert curve["over_time"]["first_frame"] == [0, 2, 4] and values[0] < values[1] < values[2]
    assert [point["step"] for point in results.curve_points(curve)] == [0, 2, 4]
    assert results.window_curve(PROTOCOLS["i3d"], {}, {}, config, 8, "drawn") == {}
