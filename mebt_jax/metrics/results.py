"""A measured number with all that belongs to it: definition, protocol, noise, floor; as JSON and as
a table.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mebt_jax.metrics import uncertainty
from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.distances.inception import inception_score
from mebt_jax.metrics.distances.kernel_distance import polynomial_mmd
from mebt_jax.metrics.distances.neighbours import NEIGHBOURS, manifold
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.uncertainty import Estimate
from mebt_jax.runtime import pictures


@dataclasses.dataclass(frozen=True)
class Result:
    """One number of a report. `definition` is a sentence; `protocol` the string of a distance, else
    empty.
    """

    estimate: Estimate
    definition: str
    protocol: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain fields; what is not defined is left out."""
        fields = dataclasses.asdict(self.estimate) | {
            "definition": self.definition,
            "protocol": self.protocol,
        }
        if self.estimate.real_floor is None:
            del fields["real_floor_count"]
        return {name: value for name, value in fields.items() if value not in (None, "")}


def mean(values: np.ndarray, definition: str, real: np.ndarray | None = None) -> Result:
    """Mean over the finite ones of independent values [n], which no number of samples biases; not a
    number if there are none.

    Args:
        real: the same of other real clips, to stand beside it.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    value = float(values.mean()) if len(values) else float("nan")
    floor = None if real is None else mean(real, "").estimate
    return Result(
        Estimate(
            value,
            len(values),
            1,
            uncertainty.standard_error(values),
            value,
            floor.value if floor and floor.count else None,
            floor.count if floor else 0,
        ),
        definition,
    )


def distances(
    protocol: Protocol,
    fake: np.ndarray,
    real: np.ndarray,
    other_real: np.ndarray | None,
    form: ClipForm,
    what: str,
    reals: str,
) -> dict[str, Result]:
    """Frechet and kernel distance, precision, recall, density and coverage of generated against
    real features [., D].

    Args:
        protocol: names every choice; its N, or as many as both sides have.
        fake, real: rows by clip.
        other_real: more real features, disjoint from `real`, for the floor; see
            `uncertainty.distance`.
        form: of the clips, for the string.
        what: of the generated clips, such as "generated"; starts the names, as in
            "generated/frechet".
        reals: which clips the real ones are, for the string.

    Returns:
        By name; empty with fewer than two clips on a side.
    """
    count = protocol.clips or min(len(fake), len(real))
    if count < 2:
        return {}

    def frechet(x: np.ndarray, y: np.ndarray) -> float:
        return frechet_distance(x, y, protocol.unbiased)

    measured = {
        "frechet": (frechet, True, f"{protocol.measure} of {what} and real clips"),
        "kernel": (
            polynomial_mmd,
            False,
            f"unbiased polynomial MMD of the same features of {what} and real clips"
            f"{' (KVD)' * (protocol.network == 'i3d')}",
        ),
    }
    found = {}
    for name, (measure, biased, definition) in measured.items():
        estimate = uncertainty.distance(
            measure, fake, real, other_real, count, protocol.repeats, biased
        )
        text = protocol.describe(count, form, estimate.repeats, reals)
        found[f"{what}/{name}"] = Result(estimate, definition, text)
    if count > NEIGHBOURS:
        shares = dataclasses.asdict(manifold(real[:count], fake[:count]))
        definitions = {
            "precision": f"share of {what} clips within reach of a real one",
            "recall": f"share of real clips within reach of a {what} one",
            "density": f"real clips within whose reach a {what} clip lies, over k = {NEIGHBOURS}; 1 if perfect",
            "coverage": f"share of real clips that have a {what} clip within reach",
        }
        errors: dict[str, float] = {}
        if count // 2 > NEIGHBOURS:
            halves = uncertainty.half_values(
                lambda x, y: dataclasses.astuple(manifold(y, x)), fake[:count], real[:count]
            )
            errors = dict(zip(shares, np.std(halves, axis=0).tolist()))
        if other_real is not None and len(other_real) >= count:
            one, other = real[:count], other_real[:count]
        else:
            one, other = real[: count // 2], real[count // 2 : 2 * (count // 2)]
        floor = dataclasses.asdict(manifold(one, other)) if len(one) > NEIGHBOURS else {}
        for name, value in shares.items():
            # No limit: how a share of k-th neighbours changes with N is no law that is known.
            estimate = Estimate(
                value,
                count,
                1,
                errors.get(name),
                real_floor=floor.get(name),
                real_floor_count=len(one),
            )
            found[f"{what}/{name}"] = Result(
                estimate, definitions[name], protocol.describe(count, form, 1, reals)
            )
    return found


def window_curve(
    protocol: Protocol,
    fake: np.ndarray | None,
    real: np.ndarray | None,
    other_real: np.ndarray | None,
    starts: Sequence[int],
    form: ClipForm,
    reals: str,
) -> dict[str, Any]:
    """The distance of each window of generated clips to the first window of real ones, as JSON; {}
    for short clips.

    Args:
        fake: features of each window [n, windows, D]; None where clips are no longer than a window.
        real, other_real: of the first window of real clips [n, 1, D]; see `distances`.
        starts: first frame of each window.
        form: of a window.
        reals: see `distances`.
    """
    if fake is None or real is None or min(len(fake), len(real)) < 2:
        return {}
    count = min(protocol.clips or len(fake), len(fake), len(real))

    def frechet(x: np.ndarray, y: np.ndarray) -> float:
        return frechet_distance(x, y, protocol.unbiased)

    others = None if other_real is None else other_real[:, 0]
    found = [
        uncertainty.distance(frechet, fake[:, w], real[:, 0], others, count, protocol.repeats)
        for w in range(len(starts))
    ]
    numbers = {
        name: [getattr(one, name) for one in found]
        for name in ("value", "standard_error", "at_infinity", "real_floor")
    }
    return {
        "over_time": {
            "first_frame": list(starts),
            **numbers,
            "count": count,
            "repeats": found[0].repeats,
            "real_floor_count": found[0].real_floor_count,
            "definition": f"{protocol.measure} of each window of {form.frames} frames of generated clips and the first window of "
            f"real ones (Figure 7 of the paper shows it less its first value)",
            "protocol": protocol.describe(count, form, found[0].repeats, reals),
        }
    }


def curve_points(curve: Mapping[str, Any]) -> list[dict[str, float]]:
    """What `pictures.curves` draws of a `window_curve`."""
    over_time, what = curve["over_time"], "distance of the window"
    columns = {
        "step": "first_frame",
        f"generated/{what}": "value",
        f"generated/{what}{pictures.ERROR}": "standard_error",
        f"real clips/{what}": "real_floor",
    }
    return [
        {
            name: over_time[column][w]
            for name, column in columns.items()
            if over_time[column][w] is not None
        }
        for w in range(len(over_time["first_frame"]))
    ]


def inception(fake: np.ndarray, real: np.ndarray) -> dict[str, Result]:
    """Inception Score of generated clips from their logits [n, V], with that of as many real clips
    beside it.
    """
    estimate = uncertainty.of_samples(lambda logits: inception_score(logits)[0], fake)
    real = real[: len(fake)]
    estimate = dataclasses.replace(
        estimate, real_floor=inception_score(real)[0], real_floor_count=len(real)
    )
    return {
        "generated/inception": Result(
            estimate,
            "Inception Score: C3D fine-tuned on UCF-101, first 16 frames, one split",
            f"tgan2: C3D UCF-101, N={len(fake)}, 1 split",
        )
    }


def to_json(results: Mapping[str, Result]) -> dict[str, Any]:
    return {name: result.to_json() for name, result in results.items()}


def table(results: Mapping[str, Result]) -> str:
    """Text: name, value with its standard error, value for perfect clips, value for endless
    samples, N.
    """
    width = max(len(name) for name in results)
    lines = [
        f"  {'':{width}s}  {'value':>10s}   {'std. error':>10s} {'real clips':>11s} "
        f"{'N -> inf':>10s} {'N':>6s}"
    ]
    for name, result in results.items():
        e = result.estimate
        lines.append(
            f"  {name:{width}s}  {_cell(e.value, 10)} "
            f"{'±' if e.standard_error is not None else ' '} "
            f"{_cell(e.standard_error, 10)} {_cell(e.real_floor, 11)} {_cell(e.at_infinity, 10)} "
            f"{e.count:6d}"
        )
    protocols = {
        result.protocol
        for name, result in results.items()
        if result.protocol and name.endswith("frechet")
    }
    return "\n".join(lines + [f"  {text}" for text in sorted(protocols)])


def _cell(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.4f}"
