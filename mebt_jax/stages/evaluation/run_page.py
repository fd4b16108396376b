"""The pictures, the page and the printed table of the evaluation of a run."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mebt_jax.config import Config
from mebt_jax.data.measured_clips import ClipPerVideo
from mebt_jax.metrics import report, results
from mebt_jax.metrics.distances import neighbours
from mebt_jax.metrics.results import Result
from mebt_jax.runtime import pictures, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages.evaluation.evaluated_clips import EvaluatedClips, Evaluator
from mebt_jax.stages.evaluation.feature_networks import FRECHET

PICTURED_CLIPS = 4  # real ones, each with its reconstruction; twice as many generated ones
CLOSEST_CLIPS = 3  # generated clips that are shown beside the training clip nearest to them
# Not among the curves here; curves.png of each stage has them all.
UNPLOTTED = ("learning_rate", "gradient_norm", "interval", "l2", "commitment")


@dataclasses.dataclass(frozen=True)
class Page:
    """What the page shows besides the clips."""

    results: dict[str, Result]
    rows: list[report.Clips]
    curve: dict[str, Any]  # of `results.window_curve`
    made_from: dict[str, str]


def ranked(
    quality: np.ndarray, text: str, clips: EvaluatedClips, evaluator: Evaluator
) -> report.Clips:
    """Best, median and worst generated clip by `quality` [n], which `text` describes."""
    chosen = report.best_median_worst(quality, higher_is_better=True)
    videos = evaluator.decode(clips.generated.tokens[[i for _, i in chosen]])
    return report.Clips(
        "Generated clips",
        f"Best, median and worst, {text}.",
        [(f"{name}: clip {i}", video) for (name, i), video in zip(chosen, videos)],
    )


def closest_to_training(
    clips: EvaluatedClips, train_clips: ClipPerVideo, evaluator: Evaluator
) -> report.Clips:
    """The generated clips that are closest to a training clip, each beside that one: is it a
    copy?
    """
    index, distance = neighbours.nearest(clips.generated.values[FRECHET], clips.train.real[FRECHET])
    closest = np.argsort(distance, kind="stable")[:CLOSEST_CLIPS]
    generated = evaluator.decode(clips.generated.tokens[closest])
    originals = [train_clips[int(index[i])]["video"] for i in closest]
    return report.Clips(
        "Memorisation",
        f"The generated clips closest to any of {len(clips.train.tokens)} training clips, each "
        "beside that one: the same clip twice would be a copy.",
        pictures.pair_rows(
            list(zip(generated, originals)),
            [
                (
                    f"generated {i}, at distance {distance[i]:.3g}",
                    f"training clip {index[i]}, nearest to it",
                )
                for i in closest
            ],
        ),
    )


def show(config: Config, workdir: Path, directory: Path, clips: EvaluatedClips, page: Page) -> None:
    """Draws the pictures and writes the page to `directory`, and prints the table and where
    everything is.
    """
    pairs = pictures.pair_rows(clips.held_out.shown[:PICTURED_CLIPS])
    generated = clips.generated.shown[: 2 * PICTURED_CLIPS]
    sheet = pairs + [(f"generated {i}", video) for i, video in enumerate(generated)]
    pictures.contact_sheet(directory / "contact_sheet.png", sheet)
    pictures.curves(directory / "curves.png", both_curves(workdir), title=config.name)
    images = {"Real, reconstructed and generated clips": directory / "contact_sheet.png"}
    images |= draw_over_time(directory, page.curve)
    images["Training"] = directory / "curves.png"
    reconstructions = report.Clips(
        "Held-out clips and their reconstructions", "What the tokenizer alone can show.", pairs
    )
    report.write_page(
        directory / "report.html",
        f"Evaluation of {config.name}",
        page.results,
        [*page.rows, reconstructions],
        images,
        [f"{part.capitalize()}: {name}." for part, name in page.made_from.items()],
        config.sample.frames_per_second,
    )
    print(results.table(page.results))
    for content, path in {
        "generated clips, mp4 and GIF": workdir_lib.generated_folder(workdir) / "clips",
        "everything on one page": directory / "report.html",
        "real, reconstructed, generated": directory / "contact_sheet.png",
        "loss curves": directory / "curves.png",
        "numbers and their definitions": directory / "metrics.json",
    }.items():
        print(f"  {content:31s} {path}")


def draw_over_time(directory: Path, curve: dict[str, Any]) -> dict[str, Path]:
    """Draws a `results.window_curve`; the picture by its caption, none for an empty curve."""
    if not curve:
        return {}
    path = directory / "over_time.png"
    pictures.curves(
        path, results.curve_points(curve), curve["over_time"]["protocol"], "first frame"
    )
    return {"Quality over the length of a clip": path}


def both_curves(workdir: Path) -> list[dict[str, Any]]:
    """The records of both training stages, with the stage in front of each name."""
    records = []
    for stage in ("tokenizer", "prior"):
        folder = workdir_lib.stage_folder(workdir, stage)
        for record in telemetry.read_metrics(folder / "metrics.jsonl"):
            records.append(
                {
                    name if name == "step" else f"{stage}/{name}": value
                    for name, value in record.items()
                    if not name.endswith(UNPLOTTED)
                }
            )
    return records
