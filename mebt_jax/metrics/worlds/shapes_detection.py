"""Finds the bar, the background and the coloured shapes in frames of moving shapes, for
metrics/worlds/shapes_physics.py.

It needs the pixels and the description of the world in data/worlds/moving_shapes.py: colours,
kinds, sizes. Frames larger than 32 pixels are averaged down first, so the work does not grow with
the resolution.
"""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from mebt_jax.data.worlds import moving_shapes
from mebt_jax.data.worlds.moving_shapes import BAR_COLOUR, COLOURS, KINDS, MovingShapes, Shape

SIDE = 32  # most pixels of the side of a frame; larger frames are shrunk
SCENES = 64  # clips of the world that its sizes are taken from
HIDDEN_SCENES = 256  # clips of the world in which shapes that stay hidden are counted
STEP = 0.5  # pixels between the positions at which a shape is searched
MAPS_AT_ONCE = 32
SEEN = 0.15  # share of a whole shape that must be visible to measure its position
COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32)  # [C, 3]


@dataclasses.dataclass(frozen=True)
class World:
    """What all clips of moving shapes have in common, in pixels of frames of this side."""

    side: int
    forms: tuple[tuple[str, float], ...]  # (kind, radius) of each possible shape
    bar_widths: tuple[float, float]  # least and greatest
    least_speed: float  # pixels per frame
    positions: np.ndarray  # [P, 2] possible centres (x, y) of a shape
    # For each form: [P, side * side] what it covers at each position, see `saturate`.
    templates: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Detection:
    """What is found in one clip. H = W = side; colours in the order of COLOUR_NAMES."""

    world: World
    frames: np.ndarray  # [F, H, W, 3] float32, 0 to 255
    bar: np.ndarray  # [W] bool: columns of the bar
    # [W] float32: 1, but 0 for the bar and for the columns beside it, whose colours are mixed.
    in_sight: np.ndarray
    background: np.ndarray  # [F, 3] float32: most common colour
    cover: np.ndarray  # [colours, F, H, W] in [0, 1]: how much of each pixel has each colour
    mass: np.ndarray  # [colours, F]: cover in sight, in pixels
    positions: np.ndarray  # [colours, forms, F, 2] best centre of each form
    # [colours, forms, F] squared difference from the form at that centre, over the area of the
    # form; 0 where the colour is not seen.
    costs: np.ndarray


@functools.lru_cache(maxsize=4)
def world(side: int) -> World:
    """The world of moving shapes, taken from its description in `data`, so that it may change."""
    source = MovingShapes(SCENES, frames=4, resolution=side, seed=0)
    scenes = [source.describe(i) for i in range(SCENES)]
    radii = sorted({round(shape.radius, 3) for scene in scenes for shape in scene.shapes})
    if len(radii) > 3:  # a range of sizes: three of them stand for all
        radii = list(np.quantile(radii, [0.1, 0.5, 0.9]))
    widths = [scene.bar[1] - scene.bar[0] for scene in scenes]
    # The greatest step of each path: a step over a bounce is shorter.
    speeds = [
        np.linalg.norm(np.diff(shape.centres, axis=0), axis=1).max()
        for scene in scenes
        for shape in scene.shapes
    ]
    axis = np.arange(min(radii), side - min(radii) + STEP / 2, STEP)
    positions = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    forms = tuple((kind, radius) for radius in radii for kind in KINDS)
    templates = tuple(
        saturate(render(kind, radius, positions, side)).reshape(len(positions), -1)
        for kind, radius in forms
    )
    return World(side, forms, (min(widths), max(widths)), float(min(speeds)), positions, templates)


@functools.lru_cache(maxsize=4)
def hidden_share(frames: int, shown: float) -> float:
    """Share of the world's clips of `frames` frames in which no shape ever has more than the share
    `shown` in sight.
    """
    source = MovingShapes(HIDDEN_SCENES, frames, SIDE, seed=0)
    return float(np.mean([source.describe(i).visible.max() < shown for i in range(HIDDEN_SCENES)]))


def render(kind: str, radius: float, centres: np.ndarray, side: int) -> np.ndarray:
    """float32 [F, side, side]: share of each pixel that a shape at centres [F, 2] covers."""
    # The canvas reaches beyond the frame, so that a shape may lie partly or wholly outside.
    margin = int(np.ceil(max(0.0, -(centres.min() - radius), (centres + radius).max() - side))) + 2
    canvas = np.zeros((len(centres), side + 2 * margin, side + 2 * margin), np.float32)
    alpha, where = moving_shapes.coverage(
        Shape(kind, COLOUR_NAMES[0], radius, centres + margin), side + 2 * margin
    )
    canvas[where] = alpha
    return canvas[:, margin:-margin, margin:-margin]


def saturate(cover: np.ndarray) -> np.ndarray:
    """Covers below 0.2 count as 0 and covers above 0.8 as 1, so that a slightly wrong colour is not
    a wrong shape.
    """
    return ((cover - 0.2) / 0.6).clip(0, 1)


def detect(video: np.ndarray) -> Detection:
    """Finds what is in one clip, uint8 [F, H, W, 3] with H = W."""
    side = min(SIDE, video.shape[1])
    frames = np.stack(
        [cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in video]
    )
    frames = frames.astype(np.float32)
    shapes_world = world(side)
    greys = np.exp(-0.5 * np.square((frames - np.float32(BAR_COLOUR)) / 25).mean(-1))  # [F, H, W]
    bar = greys.mean(axis=(0, 1)) > 0.5
    in_sight = 1.0 - ndimage.maximum_filter1d(bar.astype(np.float32), 3, mode="constant")
    outside = frames[:, :, in_sight > 0] if in_sight.any() else frames
    background = np.median(outside.reshape(len(frames), -1, 3), axis=1)
    cover = palette_cover(frames, background) * in_sight
    mass = cover.sum(axis=(2, 3))
    positions, costs = match(shapes_world, cover, in_sight, mass)
    return Detection(shapes_world, frames, bar, in_sight, background, cover, mass, positions, costs)


def palette_cover(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """[colours, F, H, W]: how much of each pixel has each palette colour; the rest is background
    [F, 3].

    Each pixel is projected to the line from the background to the colour whose line is nearest; the
    farther it is from that line, the less it counts.
    """
    difference = frames - background[:, None, None]  # [F, H, W, 3]
    to_colour = PALETTE[:, None] - background  # [C, F, 3]
    length = np.square(to_colour).sum(-1)[..., None, None]  # [C, F, 1, 1]
    share = (np.einsum("fhwc,kfc->kfhw", difference, to_colour) / length).clip(0, 1.2)
    missed = np.sqrt(
        np.square(difference - share[..., None] * to_colour[:, :, None, None]).sum(-1) / length
    )
    fits = (2 - missed / 0.25).clip(0, 1)
    best = missed.argmin(axis=0) == np.arange(len(PALETTE))[:, None, None, None]
    return saturate(share) * fits * best


def match(
    shapes_world: World, cover: np.ndarray, in_sight: np.ndarray, mass: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(positions, costs) of Detection: each form at each position against each map of one colour
    that shows enough of a shape.

    The squared difference counts where neither the bar nor another colour hides the shape.
    """
    colours, frames = mass.shape
    positions = np.zeros((colours, len(shapes_world.forms), frames, 2), np.float32)
    costs = np.zeros((colours, len(shapes_world.forms), frames), np.float32)
    areas = [template.sum(axis=1).max() for template in shapes_world.templates]
    shown = np.argwhere(mass > SEEN * min(areas))  # [n, 2] (colour, frame)
    for start in range(0, len(shown), MAPS_AT_ONCE):
        colour, frame = shown[start : start + MAPS_AT_ONCE].T
        maps = cover[colour, frame]  # [n, H, W]
        free = (1 - (cover.sum(axis=0)[frame] - maps).clip(0, 1)) * in_sight
        maps, free = maps.reshape(len(maps), -1), free.reshape(len(maps), -1)
        padding = ((0, -len(maps) % MAPS_AT_ONCE), (0, 0))  # one size, compiled once
        padded = np.pad(maps, padding), np.pad(free, padding)
        constant = np.square(maps).sum(axis=1)
        for form, template in enumerate(shapes_world.templates):
            best, cost = jax.device_get(_best_position(*padded, template))
            positions[colour, form, frame] = shapes_world.positions[best[: len(maps)]]
            costs[colour, form, frame] = (constant + cost[: len(maps)]) / areas[form]
    return positions, costs


@jax.jit
def _best_position(
    maps: jax.Array, free: jax.Array, template: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(index of the best position, its cost without the constant part), [n] each, for maps and the
    weights `free` of their pixels, [n, H * W] each, and a template [P, H * W].
    """
    exact = {"precision": jax.lax.Precision.HIGHEST}
    cost = jnp.matmul(free, jnp.square(template).T, **exact) - 2 * jnp.matmul(
        maps, template.T, **exact
    )  # [n, P]
    return cost.argmin(axis=1), cost.min(axis=1)
