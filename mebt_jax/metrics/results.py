"""A measured number with all that belongs to it: definition, protocol, noise, floor; as JSON and as a table."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mebt_jax.config import EvaluateConfig
from mebt_jax.metrics import statistics
from mebt_jax.metrics.extraction import windows
from mebt_jax.metrics.frechet import frechet_distance
from mebt_jax.metrics.inception import inception_score
from mebt_jax.metrics.kernel import polynomial_mmd
from mebt_jax.metrics.neighbours import NEIGHBOURS, manifold
from mebt_jax.metrics.protocols import Protocol
from mebt_jax.metrics.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Result:
    """One number of a report. `definition` is a sentence; `protocol` the string of a distance, else empty."""

    estimate: Estimate
    definition: str
    protocol: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain fields; what is not defined is left out."""
        fields = dataclasses.asdict(self.estimate) | {"definition": self.definition, "protocol": self.protocol}
        if self.estimate.real_floor is None:
            del fields["real_floor_count"]
        return {name: value for name, value in fields.items() if value not in (None, "")}


def number(value: float, definition: str, count: int) -> Result:
    """A number without noise of its own, from `count` samples."""
    return Result(Estimate(float(value), count, repeats=1), definition)


def mean(values: np.ndarray, definition: str) -> Result:
    """Mean over the finite ones of independent values [n]; not a number if there are none."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    value = float(values.mean()) if len(values) else float("nan")
    return Result(Estimate(value, len(values), repeats=1, standard_error=statistics.standard_error(values)), definition)


def distances(protocol: Protocol, fake: np.ndarray, real: np.ndarray, other_real: np.ndarray | None, frames: int, what: str,
              reals: str) -> dict[str, Result]:
    """Frechet and kernel distance, precision, recall, density and coverage of generated against real features [., D].

    Args:
        protocol: names every choice; its N, or as many as both sides have.
        fake, real: rows by clip.
        other_real: more real features, disjoint from `real`, for the floor; see `statistics.distance`.
        frames: of the clips, for the string.
        what: of the generated clips, such as "generated"; starts the names, as in "generated/frechet".
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
        "kernel": (polynomial_mmd, False, f"unbiased polynomial MMD of the same features of {what} and real clips"
                                          f"{' (KVD)' * (protocol.network == 'i3d')}"),
    }
    found = {}
    for name, (measure, biased, definition) in measured.items():
        estimate = statistics.distance(measure, fake, real, other_real, count, protocol.repeats, biased)
        text = protocol.describe(count, frames, estimate.repeats, reals)
        found[f"{what}/{name}"] = Result(estimate, definition, text)
    if count > NEIGHBOURS:
        shares = dataclasses.asdict(manifold(real[:count], fake[:count]))
        definitions = {"precision": f"share of {what} clips within reach of a real one",
                       "recall": f"share of real clips within reach of a {what} one",
                       "density": f"real clips within whose reach a {what} clip lies, over k = {NEIGHBOURS}; 1 if perfect",
                       "coverage": f"share of real clips that have a {what} clip within reach"}
        errors: dict[str, float] = {}
        if count // 2 > NEIGHBOURS:
            halves = statistics.half_values(lambda x, y: dataclasses.astuple(manifold(y, x)), fake[:count], real[:count])
            errors = dict(zip(shares, np.std(halves, axis=0).tolist()))
        for name, value in shares.items():
            floor = None
            if other_real is not None and len(other_real) >= count:
                floor = getattr(manifold(real[:count], other_real[:count]), name)
            estimate = Estimate(value, count, 1, errors.get(name), real_floor=floor, real_floor_count=count)
            found[f"{what}/{name}"] = Result(estimate, definitions[name], protocol.describe(count, frames, 1, reals))
    return found


def window_curve(protocol: Protocol, fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], config: EvaluateConfig,
                 frames: int, reals: str) -> dict[str, Any]:
    """The distance of each window of generated clips to the first window of real ones, as JSON; {} for short clips.

    Args:
        fake, real: features by network, of which "windows" [n, windows, D] are used, if they are there.
        frames: of the clips.
        reals: see `distances`.
    """
    if "windows" not in fake or min(len(fake["windows"]), len(real["windows"])) < 2:
        return {}
    count = min(protocol.clips or len(fake["windows"]), len(fake["windows"]), len(real["windows"]))
    first = real["windows"][:count, 0]
    values = [frechet_distance(fake["windows"][:count, w], first, protocol.unbiased) for w in range(fake["windows"].shape[1])]
    return {"over_time": {
        "first_frame": windows(frames, config.window, config.window_every), "value": values, "count": count,
        "definition": f"{protocol.measure} of each window of {config.window} frames of generated clips and the first window of "
                      f"real ones (Figure 7 of the paper shows it less its first value)",
        "protocol": protocol.describe(count, config.window, 1, reals)}}


def curve_points(curve: Mapping[str, Any]) -> list[dict[str, float]]:
    """What `pictures.curves` draws of a `window_curve`."""
    return [{"step": first, "distance of the window": value}
            for first, value in zip(curve["over_time"]["first_frame"], curve["over_time"]["value"])]


def inception(fake: np.ndarray, real: np.ndarray) -> dict[str, Result]:
    """Inception Score of generated clips from their logits [n, V], with that of real clips beside it."""
    halves = statistics.half_values(lambda x, y: inception_score(x)[0], fake, fake) if len(fake) > 3 else []
    estimate = Estimate(inception_score(fake)[0], len(fake), 1, statistics.jackknife_error(halves), None,
                        inception_score(real)[0], len(real))
    return {"generated/inception": Result(estimate, "Inception Score: C3D fine-tuned on UCF-101, first 16 frames, one split",
                                          f"tgan2: C3D UCF-101, N={len(fake)}, 1 split")}


def to_json(results: Mapping[str, Result]) -> dict[str, Any]:
    return {name: result.to_json() for name, result in results.items()}


def table(results: Mapping[str, Result]) -> str:
    """Text: name, value with its standard error, value for perfect clips, value for endless samples, N."""
    width = max(len(name) for name in results)
    lines = [f"  {'':{width}s}  {'value':>10s}   {'std. error':>10s} {'real clips':>11s} {'N -> inf':>10s} {'N':>6s}"]
    for name, result in results.items():
        e = result.estimate
        lines.append(f"  {name:{width}s}  {_cell(e.value, 10)} {'±' if e.standard_error is not None else ' '} "
                     f"{_cell(e.standard_error, 10)} {_cell(e.real_floor, 11)} {_cell(e.at_infinity, 10)} {e.count:6d}")
    protocols = {result.protocol for name, result in results.items() if result.protocol and name.endswith("frechet")}
    return "\n".join(lines + [f"  {text}" for text in sorted(protocols)])


def _cell(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.4f}"
