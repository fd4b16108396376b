"""A measured number with what belongs to it: definition, protocol, noise, floor; as JSON and as a
table.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mebt_jax.metrics import uncertainty
from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.distances.inception import inception_score
from mebt_jax.metrics.distances.kernel_distance import polynomial_mmd
from mebt_jax.metrics.distances.neighbours import NEIGHBOURS, manifold
from mebt_jax.metrics.measures import Measure
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.uncertainty import Estimate
from mebt_jax.runtime import pictures


@dataclasses.dataclass(frozen=True)
class Result:
    """One number of a report."""

    estimate: Estimate
    definition: str  # a sentence
    protocol: str = ""  # of a distance

    def to_json(self) -> dict[str, Any]:
        """Plain fields; what is not defined is left out."""
        fields = dataclasses.asdict(self.estimate) | {
            "definition": self.definition,
            "protocol": self.protocol,
        }
        if self.estimate.real_floor is None:
            del fields["real_floor_count"]
        return {name: value for name, value in fields.items() if value not in (None, "")}


# ---- numbers of single clips ---------------------------------------------------------------------


def mean(values: np.ndarray, definition: str, real: np.ndarray | None = None) -> Result:
    """Mean of independent values [n], which no number of samples biases. Values that are not finite
    are left out; of none the mean is NaN.

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


def clip_means(
    measures: Mapping[str, Measure],
    values: Mapping[str, np.ndarray],
    clips: str,
    real: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Result]:
    """Means of the plain numbers among `measures`, by name.

    Args:
        values: those of the measures, [n] each.
        clips: which clips these are, for the definitions.
        real: values of real clips, to stand beside them.
    """
    return {
        name: mean(
            values[name],
            measure.definition.format(clips=clips),
            None if real is None else real[name],
        )
        for name, measure in measures.items()
        if measure.definition
    }


# ---- numbers of sets of clips --------------------------------------------------------------------


def distances(
    protocol: Protocol,
    fake: np.ndarray,
    real: np.ndarray,
    other_real: np.ndarray | None,
    form: ClipForm,
    kind: str,
    reals: str,
) -> dict[str, Result]:
    """Frechet and kernel distance, precision, recall, density and coverage of generated against
    real features [n, D].

    Args:
        protocol: names every choice; its N, or as many as both sides have.
        fake, real: rows by clip.
        other_real: more real features, disjoint from `real`, for the floor; see
            `uncertainty.distance`.
        form: of the clips, for the string.
        kind: of the generated clips, such as "generated"; starts the names, as in
            "generated/frechet".
        reals: which clips the real ones are, for the string.

    Returns:
        By name; empty with fewer than two clips on a side.
    """
    count = protocol.clips or min(len(fake), len(real))
    if count < 2:
        return {}
    kvd = " (KVD)" if protocol.network == "i3d" else ""
    measures = {
        "frechet": (
            frechet_of(protocol),
            True,
            f"{protocol.measure} of {kind} and real clips",
        ),
        "kernel": (
            polynomial_mmd,
            False,
            f"unbiased polynomial MMD of the same features of {kind} and real clips{kvd}",
        ),
    }
    found = {}
    for name, (measure, biased, definition) in measures.items():
        estimate = uncertainty.distance(
            measure, fake, real, other_real, count, protocol.repeats, biased
        )
        text = protocol.describe(count, form, estimate.repeats, reals)
        found[f"{kind}/{name}"] = Result(estimate, definition, text)
    if count <= NEIGHBOURS:
        return found
    text = protocol.describe(count, form, 1, reals)
    for name, (estimate, definition) in _shares(fake, real, other_real, count, kind).items():
        found[f"{kind}/{name}"] = Result(estimate, definition, text)
    return found


def frechet_of(protocol: Protocol) -> Callable[[np.ndarray, np.ndarray], float]:
    """The Frechet distance with the protocol's covariance."""
    return lambda x, y: frechet_distance(x, y, protocol.unbiased)


def _shares(
    fake: np.ndarray,
    real: np.ndarray,
    other_real: np.ndarray | None,
    count: int,
    kind: str,
) -> dict[str, tuple[Estimate, str]]:
    """(estimate, definition) of precision, recall, density and coverage at N = `count`."""
    definitions = {
        "precision": f"share of {kind} clips within reach of a real one",
        "recall": f"share of real clips within reach of a {kind} one",
        "density": f"real clips within whose reach a {kind} clip lies, over k = {NEIGHBOURS}; 1 if "
        "perfect",
        "coverage": f"share of real clips that have a {kind} clip within reach",
    }
    shares = dataclasses.asdict(manifold(real[:count], fake[:count]))
    errors: dict[str, float] = {}
    if count // 2 > NEIGHBOURS:
        halves = uncertainty.half_values(
            lambda x, y: dataclasses.astuple(manifold(y, x)), fake[:count], real[:count]
        )
        errors = dict(zip(shares, np.std(halves, axis=0).tolist()))
    if other_real is not None and len(other_real) >= count:
        first, second = real[:count], other_real[:count]
    else:
        first, second = real[: count // 2], real[count // 2 : 2 * (count // 2)]
    floor = dataclasses.asdict(manifold(first, second)) if len(first) > NEIGHBOURS else {}
    # No value at infinity: no law is known by which a share of k-th neighbours changes with N.
    return {
        name: (
            Estimate(
                value,
                count,
                1,
                errors.get(name),
                real_floor=floor.get(name),
                real_floor_count=len(first),
            ),
            definitions[name],
        )
        for name, value in shares.items()
    }


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
        fake: features of each window [n, windows, D]; None if clips are no longer than a window.
        real, other_real: of the first window of real clips [n, 1, D]; see `distances`.
        starts: first frame of each window.
        form: of a window.
        reals: see `distances`.
    """
    if fake is None or real is None or min(len(fake), len(real)) < 2:
        return {}
    count = min(protocol.clips or len(fake), len(fake), len(real))
    others = None if other_real is None else other_real[:, 0]
    estimates = [
        uncertainty.distance(
            frechet_of(protocol), fake[:, w], real[:, 0], others, count, protocol.repeats
        )
        for w in range(len(starts))
    ]
    numbers = {
        name: [getattr(estimate, name) for estimate in estimates]
        for name in ("value", "standard_error", "at_infinity", "real_floor")
    }
    first = estimates[0]
    return {
        "over_time": {
            "first_frame": list(starts),
            **numbers,
            "count": count,
            "repeats": first.repeats,
            "real_floor_count": first.real_floor_count,
            "definition": f"{protocol.measure} of each window of {form.frames} frames of generated "
            "clips and the first window of real ones (Figure 7 of the paper shows it less its "
            "first value)",
            "protocol": protocol.describe(count, form, first.repeats, reals),
        }
    }


def curve_points(curve: Mapping[str, Any]) -> list[dict[str, float]]:
    """The records that `pictures.curves` draws of a `window_curve`."""
    over_time, label = curve["over_time"], "distance of the window"
    columns = {
        "step": "first_frame",
        f"generated/{label}": "value",
        f"generated/{label}{pictures.ERROR}": "standard_error",
        f"real clips/{label}": "real_floor",
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
    estimate = uncertainty.from_samples(lambda logits: inception_score(logits)[0], fake)
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


# ---- output --------------------------------------------------------------------------------------


def to_json(results: Mapping[str, Result]) -> dict[str, Any]:
    return {name: result.to_json() for name, result in results.items()}


def table(results: Mapping[str, Result]) -> str:
    """Text with a line for each number: name, value, standard error, value of real clips, value at
    N -> infinity, N.
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
