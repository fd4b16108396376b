"""Built-in data: coloured shapes that move, bounce and pass behind a bar, drawn on the fly.

A clip is a pure function of (seed, index), so nothing is downloaded or stored. A model can be right
or wrong about it at every distance in time: straight motion from frame to frame, bounces, a shape
that leaves the bar with the colour, kind and path that it had before, and a background that changes
evenly over the whole clip.
"""

import dataclasses

import numpy as np

KINDS = ("circle", "square", "triangle")
COLOURS = {"red": (230, 40, 40), "blue": (60, 110, 250), "yellow": (240, 210, 40)}
BACKGROUNDS = ((16, 20, 56), (60, 20, 26))
BAR_COLOUR = (128, 128, 128)

# Lengths are in frame widths, speeds in frame widths per frame. Shapes start on a coarse grid and
# move along one axis, one cell in four frames. So few different patches of pixels occur that a
# small tokenizer, trained for a minute, has a code for each.
CELL = 1 / 4
RADIUS = CELL / 2
BAR_WIDTH = CELL  # hides a shape whole
BAR_LEFT = (1 / 4, 1 / 2)
SPEED = CELL / 4
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape of a clip, in pixels: x right, y down, pixel (row, column) has its centre at
    (column + 0.5, row + 0.5).
    """

    kind: str
    colour: str
    radius: float
    centres: np.ndarray  # [F, 2] float (x, y)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The truth about one clip. Later shapes are drawn over earlier ones, the bar over all of
    them.
    """

    shapes: tuple[Shape, ...]
    # [number of shapes, F]: fraction of each shape's area that neither the bar nor another shape
    # hides
    visible: np.ndarray
    bar: tuple[int, int]  # first column of the bar, and the first after it
    background: np.ndarray  # [F, 3] uint8


@dataclasses.dataclass(frozen=True)
class MovingShapes:
    """Random-access source of `num_clips` clips; `offset` shifts the indices, so that two sources
    can be disjoint.
    """

    num_clips: int
    frames: int
    resolution: int
    seed: int
    offset: int = 0

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, i: int) -> dict:
        """{"video": uint8 [F, H, W, 3], "index": i}."""
        shapes, bar, background = self._draw(i)
        side = self.resolution
        video = np.broadcast_to(background[:, None, None], (self.frames, side, side, 3)).copy()
        for shape in shapes:
            alpha, where = coverage(shape, side)
            patch = video[where].astype(np.float32)
            colour = np.array(COLOURS[shape.colour], np.float32)
            video[where] = np.rint(patch + alpha[..., None] * (colour - patch)).astype(np.uint8)
        video[:, :, slice(*bar)] = BAR_COLOUR
        return {"video": video, "index": i}

    def describe(self, i: int) -> Scene:
        """What clip i shows, exact and per frame."""
        shapes, bar, background = self._draw(i)
        in_sight = np.ones((self.frames, self.resolution, self.resolution), np.float32)
        in_sight[:, :, slice(*bar)] = 0
        visible = np.zeros((len(shapes), self.frames), np.float32)
        for k in reversed(range(len(shapes))):  # front to back
            alpha, where = coverage(shapes[k], self.resolution)
            visible[k] = (alpha * in_sight[where]).sum((1, 2)) / alpha.sum((1, 2))
            in_sight[where] *= 1 - alpha
        return Scene(shapes, visible, bar, background)

    def _draw(self, i: int) -> tuple[tuple[Shape, ...], tuple[int, int], np.ndarray]:
        if not 0 <= i < self.num_clips:
            raise IndexError(f"Clip {i} of {self.num_clips}.")
        rng = np.random.default_rng((self.seed, self.offset + i))
        time = np.arange(self.frames)
        # The two shapes of a clip differ in colour, so that it is clear which of them left the bar.
        colours = rng.choice(list(COLOURS), size=2, replace=False)
        shapes = []
        for colour in colours:
            speed = SPEED * rng.choice(DIRECTIONS)
            start = RADIUS + on_grid(rng.uniform(0, 1 - 2 * RADIUS, size=2))
            centres = bounce(start + time[:, None] * speed, RADIUS, 1 - RADIUS) * self.resolution
            shapes.append(
                Shape(str(rng.choice(KINDS)), str(colour), RADIUS * self.resolution, centres)
            )
        left = round(float(on_grid(rng.uniform(*BAR_LEFT))) * self.resolution)
        first, last = np.roll(
            np.array(BACKGROUNDS, np.float64), rng.integers(len(BACKGROUNDS)), axis=0
        )
        progress = time[:, None] / max(self.frames - 1, 1)
        background = np.rint(first + progress * (last - first)).astype(np.uint8)
        return tuple(shapes), (left, left + round(BAR_WIDTH * self.resolution)), background


def on_grid(position: np.ndarray | float) -> np.ndarray:
    """The nearest multiple of CELL."""
    return np.rint(np.asarray(position) / CELL) * CELL


def bounce(position: np.ndarray, low: float, high: float) -> np.ndarray:
    """Folds a straight path back into [low, high], as a ball between two walls."""
    width = high - low
    return high - np.abs((position - low) % (2 * width) - width)


def coverage(
    shape: Shape, resolution: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(fraction of each pixel that the shape covers, [F, k, k] float32; index of these pixels in an
    [F, H, W] array).

    Only a box of k x k pixels around the shape is computed, which is fast for large frames.
    """
    size = min(resolution, int(2 * shape.radius) + 3)
    corner = np.clip(
        np.rint(shape.centres - size / 2).astype(np.int64), 0, resolution - size
    )  # [F, 2]
    columns, rows = (corner[:, :, None] + np.arange(size)).transpose(1, 0, 2)  # [F, k] each
    x = (columns + 0.5 - shape.centres[:, :1]).astype(np.float32)[:, None, :]
    y = (rows + 0.5 - shape.centres[:, 1:]).astype(np.float32)[:, :, None]
    if shape.kind == "circle":
        distance = np.sqrt(x**2 + y**2) - shape.radius
    elif shape.kind == "square":  # of the circle's area
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.886 * shape.radius
    else:  # as wide and as high as the circle, on its base
        distance = np.maximum((2 * np.abs(x) - y - shape.radius) / 5**0.5, y - shape.radius)
    frames = np.arange(len(shape.centres))[:, None, None]
    return np.clip(0.5 - distance, 0, 1), (frames, rows[:, :, None], columns[:, None, :])
