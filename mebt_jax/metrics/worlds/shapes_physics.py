"""How well clips of moving shapes obey the laws of their world: coherence over time, measured where
the truth is known.

The world (data/worlds/moving_shapes.py) has two shapes of different colours that move straight on,
bounce off the frame, and pass behind a bar, before a background that changes evenly. A clip is
explained by the shapes that fit best (kind, colour, straight path with bounces, found from where
each colour is seen), and each score says how much of the clip the explanation covers. Any uint8
clip can be scored; a real one gets about 1. No score needs the scene that a clip was made from.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mebt_jax.data.worlds.moving_shapes import bounce
from mebt_jax.metrics.worlds import shapes_detection
from mebt_jax.metrics.worlds.shapes_detection import SEEN, Detection, hidden_share

NAME = "moving-shapes physics"
TRACKED = 0.3  # a colour is a shape if this share of a whole shape is visible in some frame
BOUNCE_FRAMES = 2  # positions within so many frames of a bounce count in the bounce error

DEFINITIONS = {
    "score": "geometric mean of the six below; 1 for a clip that keeps every law",
    "shapes": "number conserved: visible area of each colour in each frame against that of the "
    "shapes on their paths",
    "motion": "straight on: 1 where a shape is seen on its path, falling with the distance (0.6 at "
    "a quarter of its size); less for shapes slower than any of the world",
    "identity": "colour and kind kept, after hiding too: share of what lies on a path with the "
    "colour and kind of its shape",
    "form": "outlines: overlap of what is seen with the shapes on their paths, over their union",
    "background": "even drift: closeness of the background to one colour in each frame that "
    "changes evenly over the clip",
    "bar": "steady bar: closeness of its pixels to its colour in every frame, and of its width to "
    "the world's",
    "occlusion": "share of the shape that is there, in its colour, on its path, once it is out "
    "from behind the bar or another shape; over the clips where a shape was hidden and came out",
    "bounce_error": "distance from the path within two frames of a bounce, in frame widths; over "
    "the clips with a bounce",
}
LAWS = ("shapes", "motion", "identity", "form", "background", "bar")


@dataclasses.dataclass(frozen=True)
class Track:
    """One shape that explains a colour of a clip; in pixels of the detection's frames."""

    colour: int
    kind: str
    radius: float
    path: np.ndarray  # [F, 2] centres (x, y)
    speed: float  # along the path, per frame
    error: np.ndarray  # [F] distance of its measured position from the path
    weight: np.ndarray  # [F] in [0, 1]: how much of it was seen; 0 if no position was measured
    kind_kept: np.ndarray  # [F] in [0, 1]: whether it has its kind
    near_bounce: np.ndarray  # [F] bool


def physics(videos: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The scores of DEFINITIONS, float64 [n] each, for clips uint8 [F, H, W, 3]; NaN where a clip
    does not show the case.

    In some clips of the world all shapes stay behind the bar. So clips without shapes count as
    keeping the laws of shapes, in the number that the world has among n clips, plus one. If there
    are more, each counts in part: a model that draws no shapes gets no high score.
    """
    detections = [shapes_detection.detect(video) for video in videos]
    empty = [not tracked_colours(seen) for seen in detections]
    excused = 1.0
    if any(empty):
        excused = min(
            1.0,
            (hidden_share(len(detections[0].frames), TRACKED) * len(detections) + 1) / sum(empty),
        )
    scores = [clip_scores(seen, excused) for seen in detections]
    return {name: np.array([values[name] for values in scores]) for name in DEFINITIONS}


def clip_scores(seen: Detection, without_shapes: float) -> dict[str, float]:
    """The scores of one clip; `without_shapes` is that of the laws of shapes if it shows none."""
    tracks = [track(seen, colour) for colour in tracked_colours(seen)]
    expected = rendered(seen, tracks)  # [tracks, F, H, W]
    scores = {
        "background": background_score(seen),
        "bar": bar_score(seen),
        **dict.fromkeys(("motion", "identity"), 0.0),
        "occlusion": float("nan"),
        "bounce_error": float("nan"),
        **area_scores(seen, tracks, expected),
    }
    if tracks:
        scores |= track_scores(seen, tracks, expected)
    else:
        scores |= dict.fromkeys(("shapes", "motion", "identity", "form"), without_shapes)
    return scores | {"score": float(np.prod([scores[name] for name in LAWS]) ** (1 / len(LAWS)))}


# ---- shapes and their paths ----------------------------------------------------------------------


def tracked_colours(seen: Detection) -> list[int]:
    """Colours of which one frame shows enough to be a shape."""
    least = min(template.sum(axis=1).max() for template in seen.world.templates)
    return [colour for colour, mass in enumerate(seen.mass) if mass.max() > TRACKED * least]


def track(seen: Detection, colour: int) -> Track:
    """The kind and the path that explain most of where a colour is seen."""
    areas = np.array([template.sum(axis=1).max() for template in seen.world.templates])
    share = (seen.mass[colour] / areas[:, None]).clip(0, 1)  # [forms, F]
    # A narrow part of a shape says little about its position.
    weights = np.where(share > SEEN, share, 0.0) ** 2
    form = int(((seen.costs[colour] * weights).sum(axis=1) / weights.sum(axis=1)).argmin())
    kind, radius = seen.world.forms[form]
    positions, weight = seen.positions[colour, form], weights[form]
    fits = [
        fit_axis(positions[:, axis], weight, radius, seen.world.side - radius) for axis in (0, 1)
    ]
    path = np.stack([fit.path for fit in fits], axis=1)
    bounced = fits[0].bounced | fits[1].bounced
    costs = seen.costs[colour]
    other = np.min(
        costs[[i for i, (name, _) in enumerate(seen.world.forms) if name != kind]], axis=0
    )
    # 0.5 where another kind fits as well.
    kept = (0.5 + (other - costs[form]) / 0.04).clip(0, 1)
    speed = float(np.hypot(fits[0].speed, fits[1].speed))
    return Track(
        colour,
        kind,
        radius,
        path,
        speed,
        np.linalg.norm(positions - path, axis=1),
        weight,
        np.maximum(kept, weight < 0.7),
        ndimage.binary_dilation(bounced, iterations=BOUNCE_FRAMES),
    )


class Fit(NamedTuple):
    """An even motion between two walls along one axis."""

    path: np.ndarray  # [F]
    bounced: np.ndarray  # [F] bool: just before this frame
    speed: float  # per frame


def fit_axis(positions: np.ndarray, weights: np.ndarray, low: float, high: float) -> Fit:
    """The even motion between two walls that is nearest to positions [F] with weights [F].

    Each pair of frames a few apart gives a start and a speed. The candidate that agrees best with
    all positions is refined by least squares. No position counts with more than a shape's radius,
    so that a few wrong ones do not bend the path.
    """
    frames = np.arange(len(positions))
    seen = np.flatnonzero(weights > 0)
    reach = low  # the radius
    candidates = [(float(np.average(positions[seen], weights=weights[seen])), 0.0)]
    for gap in sorted({1, 2, 3, 5, 8, max(1, len(seen) // 2)}):
        for first, second in zip(seen, seen[gap:]):
            speed = (positions[second] - positions[first]) / (second - first)
            candidates.append((positions[first] - speed * first, speed))
    starts, speeds = np.array(candidates).T  # [n]

    def misses(start: np.ndarray, speed: np.ndarray) -> np.ndarray:
        return np.abs(positions - bounce(start[:, None] + speed[:, None] * frames, low, high))

    best = (np.minimum(misses(starts, speeds), reach) @ weights).argmin()
    start, speed = starts[best], speeds[best]
    for _ in range(5):
        straight = start + speed * frames
        slope = wall_sign(straight, low, high)
        miss = positions - bounce(straight, low, high)
        trusted = np.sqrt(weights * (np.abs(miss) < reach / 2))
        design = np.stack([slope, slope * frames], axis=1) * trusted[:, None]
        change = np.linalg.lstsq(design, miss * trusted, rcond=None)[0]
        start, speed = start + change[0], speed + change[1]
    straight = start + speed * frames
    turned = (
        np.diff(
            np.floor((straight - low) / (high - low)),
            prepend=np.floor((straight[0] - low) / (high - low)),
        )
        != 0
    )
    return Fit(bounce(straight, low, high), turned, float(speed))


def wall_sign(straight: np.ndarray, low: float, high: float) -> np.ndarray:
    """+1 where the folded path runs with the straight one, -1 where it runs back."""
    return np.where(np.floor((straight - low) / (high - low)) % 2 == 0, 1.0, -1.0)


def rendered(seen: Detection, tracks: list[Track]) -> np.ndarray:
    """[tracks, F, H, W]: what each shape should cover in sight; where two overlap, the shape whose
    colour is seen there is in front.
    """
    side, frames = seen.world.side, len(seen.frames)
    expected = np.zeros((len(tracks), frames, side, side), np.float32)
    for i, shape in enumerate(tracks):
        cover = shapes_detection.render(shape.kind, shape.radius, shape.path, side)
        expected[i] = shapes_detection.saturate(cover) * seen.in_sight
    for i in range(len(tracks)):
        for j in range(i):
            both = expected[i] * expected[j]
            in_front = (
                both * (seen.cover[tracks[i].colour] - seen.cover[tracks[j].colour])
            ).sum() > 0
            front, back = (i, j) if in_front else (j, i)
            expected[back] *= 1 - expected[front]
    return expected


# ---- scores --------------------------------------------------------------------------------------


def area_scores(seen: Detection, tracks: list[Track], expected: np.ndarray) -> dict[str, float]:
    """`shapes` and `form`; a colour that no track explains should cover nothing."""
    explained = np.zeros_like(seen.cover)
    for shape, cover in zip(tracks, expected):
        explained[shape.colour] = cover
    area = explained.sum(axis=(2, 3))  # [colours, F]
    return {
        "shapes": float(
            np.minimum(area, seen.mass).sum() / max(np.maximum(area, seen.mass).sum(), 1.0)
        ),
        "form": float(
            np.minimum(explained, seen.cover).sum()
            / max(np.maximum(explained, seen.cover).sum(), 1.0)
        ),
    }


def track_scores(seen: Detection, tracks: list[Track], expected: np.ndarray) -> dict[str, float]:
    """`motion`, `identity`, `occlusion` and `bounce_error`."""
    weights = np.stack([shape.weight for shape in tracks])  # [tracks, F]
    errors = np.stack([shape.error / shape.radius for shape in tracks])
    moves = np.array(
        [[min(1.0, (shape.speed + 0.05) / seen.world.least_speed)] for shape in tracks]
    )
    motion = (weights * moves * np.exp(-0.5 * np.square(errors / 0.5))).sum() / weights.sum()

    foreground = seen.cover.sum(axis=0)
    found = np.minimum(expected, foreground).sum(axis=(2, 3))  # [tracks, F]
    in_colour = np.stack(
        [
            np.minimum(cover, seen.cover[shape.colour]).sum(axis=(1, 2))
            for shape, cover in zip(tracks, expected)
        ]
    )
    kinds = np.stack([shape.kind_kept for shape in tracks])
    identity = (in_colour * kinds).sum() / max(found.sum(), 1.0)

    visible = expected.sum(axis=(2, 3))
    whole = visible.max(axis=1, keepdims=True)
    shares = visible / np.maximum(whole, 1.0)
    after = np.stack([came_out(share) for share in shares])  # [tracks, F] bool
    occlusion = (
        (in_colour * kinds)[after].sum() / visible[after].sum() if after.any() else float("nan")
    )

    bounced = np.stack([shape.near_bounce & (shape.weight > 0.25) for shape in tracks])
    pixels = np.stack([shape.error for shape in tracks])
    bounce_error = pixels[bounced].mean() / seen.world.side if bounced.any() else float("nan")
    return {
        "motion": float(motion),
        "identity": float(identity),
        "occlusion": float(occlusion),
        "bounce_error": float(bounce_error),
    }


def came_out(visible: np.ndarray) -> np.ndarray:
    """[F] bool: frames where a shape is in sight that was in sight (half of it), then hidden
    (nearly whole).
    """
    state, after = 0, np.zeros(len(visible), bool)
    for frame, share in enumerate(visible):
        if state == 0 and share > 0.5:
            state = 1
        elif state == 1 and share < 0.2:
            state = 2
        after[frame] = state == 2 and share > 0.5
    return after


def background_score(seen: Detection) -> float:
    """Closeness of the frames' backgrounds to a straight line, times that of their plain pixels to
    the frame's background.
    """
    time = np.arange(len(seen.frames))
    degree = min(1, len(time) - 1)
    line = np.stack(
        [np.polyval(np.polyfit(time, channel, degree), time) for channel in seen.background.T],
        axis=1,
    )  # [F, 3]
    near_shape = ndimage.maximum_filter(seen.cover.max(axis=0), size=(1, 3, 3)) > 0
    plain = ~near_shape & (seen.in_sight > 0)  # [F, H, W]
    if not plain.any():
        return 0.0
    uneven = np.square(seen.frames - seen.background[:, None, None]).mean(axis=-1)[plain]
    astray = np.square(seen.background - line).mean(axis=-1)  # [F]
    return float(np.exp(-0.5 * uneven / 16**2).mean() * np.exp(-0.5 * astray / 8**2).mean())


def bar_score(seen: Detection) -> float:
    if not seen.bar.any():
        return 0.0
    closeness = np.exp(
        -0.5 * np.square((seen.frames - np.float32(shapes_detection.BAR_COLOUR)) / 25).mean(axis=-1)
    )
    width, (least, greatest) = seen.bar.sum(), seen.world.bar_widths
    # A column more or less is rounding.
    fit = min(1.0, (width + 1) / least, greatest / max(width - 1, 1))
    return float(closeness[:, :, seen.bar].mean() * fit)
