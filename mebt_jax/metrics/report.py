"""The page of an evaluation: one HTML file that contains its tables, curves, pictures and clips."""

import base64
import dataclasses
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mebt_jax.metrics.results import Result
from mebt_jax.runtime import pictures

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; } th:first-child, td:first-child, td.text { text-align: left; }
td.text { color: #555; font-size: 13px; white-space: normal; }
tr.group td { font-weight: 600; background: #f4f4f4; text-align: left; }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top; }
figcaption { font-size: 13px; color: #555; }
figure.clip img { image-rendering: pixelated; width: 160px; } figure.wide img { max-width: 100%; }
code { background: #f4f4f4; padding: .1em .3em; } .protocol { font-size: 13px; }
"""

COLUMNS = (
    "Std. error: over repeats, from random halves of one, or from the spread over clips. Real "
    "clips: what real clips reach against other real ones at the same N; no model can be expected "
    "to do better. N → ∞: what is left without a bias of 1/N; the same where there is no bias, "
    "empty where its law is not known."
)


@dataclasses.dataclass(frozen=True)
class Clips:
    """A row of clips that play beside each other."""

    title: str
    text: str
    clips: Sequence[tuple[str, np.ndarray]]  # (caption, uint8 [F, H, W, 3])


def write_page(
    path: Path,
    title: str,
    results: Mapping[str, Result],
    rows: Sequence[Clips] = (),
    images: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
    frames_per_second: float = 8.0,
) -> None:
    """Writes the page.

    Args:
        path: HTML file.
        title: of the run.
        results: by name; the part before the first slash is the group.
        rows: clips to play.
        images: PNG files by caption; files that do not exist are left out.
        notes: sentences for the top of the page, such as which clips were skipped.
        frames_per_second: of the clips.
    """
    protocols = sorted(
        {
            result.protocol
            for name, result in results.items()
            if name.endswith("frechet") and result.protocol
        }
    )
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [f"<p class=protocol><code>{_text(protocol)}</code></p>" for protocol in protocols]
    parts += [f"<p>{_text(note)}</p>" for note in notes]
    for row in rows:
        clips = "".join(_clip(caption, video, frames_per_second) for caption, video in row.clips)
        parts.append(f"<h2>{_text(row.title)}</h2><p>{_text(row.text)}</p>{clips}")
    parts += ["<h2>Numbers</h2>", f"<p>{_text(COLUMNS)}</p>", _table(results)]
    for caption, image in (images or {}).items():
        if image.exists():
            parts.append(
                f'<h2>{_text(caption)}</h2><figure class=wide><img alt="{_text(caption)}" '
                f'src="{_inline(image)}"></figure>'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{_text(title)}</title>"
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n",
        encoding="utf-8",
    )


def best_median_worst(scores: np.ndarray, higher_is_better: bool) -> list[tuple[str, int]]:
    """("best", index), ("median", ...), ("worst", ...) of scores [n]; fewer for fewer than
    three.
    """
    order = np.argsort(-scores if higher_is_better else scores, kind="stable")
    if not len(order):
        return []
    ranks = {"worst": -1, "median": (len(order) - 1) // 2, "best": 0}
    chosen = {int(order[rank]): name for name, rank in ranks.items()}  # the best name of an index
    return [(name, index) for index, name in reversed(chosen.items())]


def _table(results: Mapping[str, Result]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("", "value", "std. error", "real clips", "N → ∞", "N", "")
    )
    lines, group = [], None
    for name, result in results.items():
        first = name.split("/")[0]
        if first not in (group, name):
            group = first
            lines.append(f"<tr class=group><td colspan=7>{_text(group)}</td></tr>")
        e = result.estimate
        numbers = "".join(
            f"<td>{_number(value)}</td>"
            for value in (e.value, e.standard_error, e.real_floor, e.at_infinity)
        )
        lines.append(
            f"<tr><td>{_text(name)}</td>{numbers}<td>{e.count}</td>"
            f"<td class=text>{_text(result.definition)}</td></tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _clip(caption: str, video: np.ndarray, frames_per_second: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.gif"
        pictures.write_gif(path, video, frames_per_second)
        source = _inline(path)
    caption = _text(caption)
    image = f'<img alt="{caption}" src="{source}">'
    return f"<figure class=clip>{image}<figcaption>{caption}</figcaption></figure>"


def _inline(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _text(text: str) -> str:
    return html.escape(text)
