"""What a run shows to a person: clips as mp4 and GIF, contact sheets and loss curves as PNG.

Every video here is uint8 [F, H, W, 3]. The training loops, the sample stage and the evaluate stage
call this; nothing here feeds back into a computation, so small clips are enlarged freely to be
visible.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mebt_jax.errors import UserError

SHOWN_SIZE = 128  # pixels of the shorter side below which a written clip is enlarged
SHEET_FRAME_SIZE = 64  # the same for one frame of a contact sheet
SHEET_FRAMES = 16
SEPARATOR = 2
LABEL_WIDTH = 150
BACKGROUND = (255, 255, 255)
MAX_PANELS = 21
SERIES = (
    "train",
    "validation",
    "generated",
    "real clips",
    "real",
    "fake",
)  # parts of a name that tell lines of one panel apart
ERROR = " ±"  # ends the name of the standard error of what it is added to


class Mp4Writer:
    """An H.264 file that grows by pieces uint8 [F, H, W, 3]; below 128 px enlarged by a whole
    factor, odd sizes padded by one.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), mode="w", format="mp4")
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(frames_per_second).limit_denominator(1000)
        )
        self._stream.pix_fmt = "yuv420p"  # the one layout that every player and browser shows
        self._stream.options = {"crf": "16", "preset": "fast"}

    def write(self, video: np.ndarray) -> None:
        frames = _even(_enlarge(_checked(video), SHOWN_SIZE))
        if not self._stream.codec_context.is_open:
            self._stream.height, self._stream.width = frames.shape[1:3]
        for frame in frames:
            self._container.mux(
                self._stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                )
            )

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def write_mp4(path: Path, video: np.ndarray, frames_per_second: float) -> None:
    """Writes uint8 [F, H, W, 3] as one file, see `Mp4Writer`."""
    writer = Mp4Writer(path, frames_per_second)
    writer.write(video)
    writer.close()


def write_gif(path: Path, video: np.ndarray, frames_per_second: float) -> None:
    """Writes uint8 [F, H, W, 3] as an endless GIF; clips below 128 px are enlarged by a whole
    factor.
    """
    frames = [Image.fromarray(frame) for frame in _enlarge(_checked(video), SHOWN_SIZE)]
    path.parent.mkdir(parents=True, exist_ok=True)
    # GIF counts hundredths of a second, and viewers slow anything below 2 down to 10.
    duration = max(20, 10 * round(100 / frames_per_second))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def contact_sheet(path: Path, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """Writes one PNG with a labelled row per clip, its frames from left to right.

    Args:
        path: PNG file.
        rows: (label, uint8 video [F, H, W, 3]); clips longer than 16 frames show 16 evenly chosen
            ones.
    """
    if not rows:
        raise ValueError("contact_sheet needs at least one row")
    strips = [(label, _strip(_checked(video))) for label, video in rows]
    width = LABEL_WIDTH + max(strip.shape[1] for _, strip in strips)
    height = sum(strip.shape[0] + SEPARATOR for _, strip in strips) - SEPARATOR
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    y = 0
    for label, strip in strips:
        sheet.paste(Image.fromarray(strip), (LABEL_WIDTH, y))
        draw.text((6, y + strip.shape[0] // 2), label, fill=(0, 0, 0), font=font, anchor="lm")
        y += strip.shape[0] + SEPARATOR
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def curves(
    path: Path, records: Sequence[Mapping[str, object]], title: str = "", x_label: str = "step"
) -> None:
    """Draws the numbers of `metrics.jsonl` over the step, or over what `x_label` says "step" stands
    for.

    Names that differ in a part of SERIES alone ("train/loss", "validation/loss") share a panel; at
    most 21 panels, in order of appearance. A name that ends in ERROR is drawn as bars of the name
    before it. Infinite and missing values leave a gap. Writes nothing if there is nothing to draw.
    """
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        for name, value in record.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and name != "step" and not name.endswith(ERROR) and "step" in record:
                panel = "/".join(part for part in name.split("/") if part not in SERIES)
                panels[panel][name].append(
                    (float(record["step"]), float(value), float(record.get(name + ERROR, 0)))
                )
    if not panels:
        return
    # Here and not at the top: matplotlib takes a second to import, and only the end of a run draws.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(panels.items())[:MAX_PANELS]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for index, (panel, series) in enumerate(shown):
        axes = figure.add_subplot(lines, columns, index + 1)
        for name, points in series.items():
            steps, values, errors = np.asarray(points).T
            label = " ".join(part for part in name.split("/") if part in SERIES) or name
            axes.errorbar(
                steps,
                values,
                errors if errors.any() else None,
                marker="." if len(points) < 30 else None,
                linewidth=1.2,
                label=label,
            )
        axes.set_title(panel)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend(fontsize=8)
    figure.suptitle(
        "\n".join(textwrap.wrap(title, 45 * columns)),
        fontsize=12 if len(title) < 45 * columns else 8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _checked(video: np.ndarray) -> np.ndarray:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise UserError(
            f"A picture needs a uint8 video [frames, height, width, 3], but got {video.dtype} "
            f"{video.shape}; "
            f"convert it with data.clips.to_uint8."
        )
    return video


def _enlarge(video: np.ndarray, size: int) -> np.ndarray:
    """Nearest neighbour by the smallest whole factor that brings the shorter side to `size`."""
    factor = max(1, math.ceil(size / min(video.shape[1:3])))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _even(video: np.ndarray) -> np.ndarray:
    """Repeats the last row or column where the size is odd: yuv420p stores colour for 2x2 pixels at
    a time.
    """
    return np.pad(
        video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), mode="edge"
    )


def _strip(video: np.ndarray) -> np.ndarray:
    chosen = np.linspace(0, len(video) - 1, min(len(video), SHEET_FRAMES)).round().astype(int)
    frames = _enlarge(video[chosen], SHEET_FRAME_SIZE)
    frames = np.pad(frames, ((0, 0), (0, 0), (0, SEPARATOR), (0, 0)), constant_values=BACKGROUND[0])
    return np.concatenate(list(frames), axis=1)[
        :, :-SEPARATOR
    ]  # [h, frames * (w + separator) - separator, 3]
