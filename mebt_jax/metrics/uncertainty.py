"""How far a number can be trusted: its standard error, its value for perfect clips (the floor), and
its value for infinitely many clips.

A distance between two sets of N features has noise, and a bias that falls as 1/N. The project
reports these three numbers beside every distance.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], float]  # of two sets of features [N, D]
REPEATS = 10
SEED = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty; None for what is not defined."""

    value: float
    count: int  # N, samples on each side
    repeats: int  # independent sets of N generated samples behind the mean
    standard_error: float | None = None
    at_infinity: float | None = None
    real_floor: float | None = None
    real_floor_count: int = 0  # N of the floor


def distance(
    measure: Distance,
    fake: np.ndarray,
    real: np.ndarray,
    other_real: np.ndarray | None = None,
    count: int = 0,
    repeats: int = 1,
    biased: bool = True,
) -> Estimate:
    """`measure` between generated and real features at N = `count` samples a side, with standard
    error, floor and limit.

    Args:
        measure: distance of two sets of rows.
        fake: [>= N, D]; the mean is over min(repeats, rows // N) disjoint sets of N of them, in
            order.
        real: [>= N, D]; the first N are used.
        other_real: disjoint real features for the floor. None: the rows of `real` beyond its first
            N, or its halves if there are too few.
        count: 0 stands for as many as both sides have.
        biased: whether the value falls as 1/N, as the Frechet distance does; if not, the value is
            the limit.

    Raises:
        ValueError: a side has fewer than N rows. Rows are never repeated.
    """
    count = count or min(len(fake), len(real))
    if min(len(fake), len(real)) < count:
        raise ValueError(
            f"{count} samples a side are needed, but there are {len(fake)} generated and "
            f"{len(real)} real ones"
        )
    real, spare = real[:count], real[count:]
    sets = [fake[k * count : (k + 1) * count] for k in range(min(repeats, len(fake) // count))]
    values = [measure(rows, real) for rows in sets]
    value = float(np.mean(values))
    halves = half_values(measure, sets[0], real) if count >= 4 else []
    error = standard_error(values) if len(sets) > 1 else jackknife_error(halves)
    at_infinity = value
    if biased:
        at_infinity = value - bias(values[0], halves, count) if halves else None
    floor, floor_count = real_floor(
        measure, real, spare if other_real is None else other_real, biased
    )
    return Estimate(value, count, len(sets), error, at_infinity, floor, floor_count)


def from_samples(
    measure: Callable[..., float], *samples: np.ndarray, biased: bool | None = True
) -> Estimate:
    """`measure` of N samples, which are the rows of one or several arrays [N, ...], with standard
    error and limit.

    Args:
        biased: whether the value changes as 1/N; None: it changes by no known law, so its limit is
            not known.
    """
    count = len(samples[0])
    value = float(measure(*samples))
    rng = np.random.default_rng(SEED)
    halved = [rng.permutation(count)[: count // 2] for _ in range(REPEATS)] if count >= 4 else []
    halves = [float(measure(*(rows[half] for rows in samples))) for half in halved]
    at_infinity = value if biased is False else None
    if biased and halves:
        at_infinity = value - bias(value, halves, count)
    return Estimate(value, count, 1, jackknife_error(halves), at_infinity)


def bias(value: float, halves: Sequence[float], count: int) -> float:
    """c / N of the law v(N) = v + c / N, given `value` = v(N) at N = `count` and values at N //
    2.
    """
    half = count // 2
    return (float(np.mean(halves)) - value) * half / (count - half)


def half_values(
    measure: Callable[[np.ndarray, np.ndarray], Any],
    x: np.ndarray,
    y: np.ndarray,
    repeats: int = REPEATS,
) -> list:
    """The measure between random halves of x and of y, drawn anew each time from a fixed seed."""
    rng = np.random.default_rng(SEED)
    return [measure(_half(x, rng), _half(y, rng)) for _ in range(repeats)]


def jackknife_error(halves: Sequence[float]) -> float | None:
    """Standard error of a value from N samples, given its values on random halves of them.

    Delete-half jackknife (Shao and Wu 1989): leaving out d of N samples makes the variance of what
    remains d / (N - d) of the variance at N, which is 1 for halves. Close to the real floor the
    error is too large rather than too small.
    """
    return float(np.std(halves)) if len(halves) > 1 else None


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None for a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def real_floor(
    measure: Distance, real: np.ndarray, other: np.ndarray, biased: bool
) -> tuple[float | None, int]:
    """(value for perfect clips at N = len(real), samples a side that it was measured with).

    It is the value between `real` and as many `other` real samples. If there are fewer, it is the
    value between the halves of `real`, which for a biased measure is carried to N by the law 1/N.
    """
    count = len(real)
    if len(other) >= count:
        return float(measure(other[:count], real)), count
    half = count // 2
    if half < 2:
        return None, 0
    value = measure(real[:half], real[half : 2 * half])
    return float(value * half / count if biased else value), half


def _half(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return samples[rng.permutation(len(samples))[: len(samples) // 2]]
