"""Pictures for people: clips as mp4 and GIF, contact sheets and loss curves as PNG.

Every video here is uint8 [F, H, W, 3]. Nothing here feeds back into a computation, so small clips
are enlarged until they are visible.
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
# Parts of a name that distinguish the lines of one panel.
SERIES = ("train", "validation", "generated", "real clips", "real", "fake")
ERROR = " ±"  # "x ±" is the standard error of "x"


class Mp4Writer:
    """An H.264 file to which frames uint8 [F, H, W, 3] are appended. Clips below 128 px are
    enlarged by a whole factor, odd sizes padded by one row or column.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), mode="w", format="mp4")
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(frames_per_second).limit_denominator(1000)
        )
        self._stream.pix_fmt = "yuv420p"  # the only layout that every player and browser shows
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


def pair_rows(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    captions: Sequence[tuple[str, str]] | None = None,
) -> list[tuple[str, np.ndarray]]:
    """(caption, clip) rows of pairs of clips, the second clip of each pair below the first.

    Args:
        captions: one pair for each; None: "real i" and "reconstructed i".
    """
    if captions is None:
        captions = [(f"real {i}", f"reconstructed {i}") for i in range(len(pairs))]
    return [row for pair in zip(captions, pairs) for row in zip(*pair)]


def curves(
    path: Path, records: Sequence[Mapping[str, object]], title: str = "", x_label: str = "step"
) -> None:
    """Draws the numbers of records as `metrics.jsonl` has them, over their "step"; a panel for each
    key of `panels_of`. Infinite and missing values leave a gap. Writes nothing if there is no
    number.

    Args:
        path: PNG file.
        records: one {"step": n, name: number, ...} for each line of metrics.jsonl.
        title: above all panels.
        x_label: meaning of "step".
    """
    shown = list(panels_of(records).items())[:MAX_PANELS]
    if not shown:
        return
    # Here and not at the top: matplotlib takes a second to import, and only the end of a run draws.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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


def panels_of(
    records: Sequence[Mapping[str, object]],
) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Panel -> name -> (step, value, standard error) of each record that has the number.

    Names that differ only in a part of SERIES ("train/loss", "validation/loss") share a panel.
    Panels and names come in order of appearance. "x" + ERROR is the standard error of "x", else 0.
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
    return panels


def _checked(video: np.ndarray) -> np.ndarray:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise UserError(
            f"A picture needs a uint8 video [frames, height, width, 3], but got {video.dtype} "
            f"{video.shape}; convert it with data.clips.to_uint8."
        )
    return video


def _enlarge(video: np.ndarray, size: int) -> np.ndarray:
    """Enlarges by nearest neighbour and the smallest whole factor that brings the shorter side to
    `size`.
    """
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
    # [h, frames * (w + separator) - separator, 3]
    return np.concatenate(list(frames), axis=1)[:, :-SEPARATOR]
