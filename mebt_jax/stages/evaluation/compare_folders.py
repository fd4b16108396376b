"""Evaluates any folder of videos against another: no model and no earlier stage needed. Part of the
evaluate stage.

python -m mebt_jax.main --config=configs/ucf16.py --stage=evaluate --config.evaluate.real=DIR
--config.evaluate.fake=DIR
"""

import dataclasses
from pathlib import Path

import jax

from mebt_jax.config import Config
from mebt_jax.metrics import protocols, report, results
from mebt_jax.metrics.distances import neighbours
from mebt_jax.metrics.measures import Measures, windows
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.results import Result
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import pictures, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages.evaluation import feature_networks, folder_clips
from mebt_jax.stages.evaluation.feature_networks import FRECHET, INCEPTION, WINDOWS
from mebt_jax.stages.evaluation.folder_clips import ClipRule, Side
from mebt_jax.stages.evaluation.run_page import draw_over_time

# Below the work directory, beside the stages: the numbers of a run stay as they are.
FOLDER = "compare"
PICTURED_CLIPS = 8


def wanted(config: Config) -> bool:
    """Whether the config names two folders to compare."""
    return bool(config.evaluate.real or config.evaluate.fake)


def run(config: Config, workdir: Path) -> None:
    """Writes metrics.json, report.html and contact_sheet.png below `<workdir>/compare`, and prints
    the table.

    Raises:
        UserError: a folder is missing or empty, the two differ in size or frame rate, too few
            clips, no weights.
    """
    # ---- folders and protocol --------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch_size(mesh, config.evaluate.batch_size, "config.evaluate.batch_size")
    real_videos, fake_videos = (
        folder_clips.find(getattr(config.evaluate, name), name) for name in ("real", "fake")
    )
    # A folder is of no split.
    protocol = protocols.for_data(config.evaluate.protocol, "validation", config.data.frames)
    protocols.check_counts(protocol, real=len(real_videos), fake=len(fake_videos))
    measures = feature_networks.load_for_folders(protocol, config)
    size, side = folder_clips.common_size(real_videos, fake_videos, config)
    rule = ClipRule(config.data.frames, config.data.frame_stride, size, side, "random")
    form = ClipForm(rule.frames, rule.side, rule.stride)
    if not config.evaluate.any_frame_rate:
        folder_clips.check_frame_rates(real_videos, fake_videos)

    # ---- measures --------------------------------------------------------------------------------
    settings = {
        "size": config.evaluate.batch_size,
        "mesh": mesh,
        "folder": workdir / FOLDER / "features",
    }
    real = folder_clips.measure_side(
        real_videos, rule, 2 * protocol.clips, measures.real, text="real clips", **settings
    )
    fake = folder_clips.measure_side(
        fake_videos,
        dataclasses.replace(rule, start="first"),
        protocol.clips * protocol.repeats,
        measures.generated,
        text="generated clips",
        **settings,
    )
    protocols.check_counts(protocol, real=len(real.videos), fake=len(fake.videos))
    folder_clips.check_enough(real, fake, config)

    # ---- numbers and page ------------------------------------------------------------------------
    text = (
        f"{config.evaluate.real}, one clip per video at a random start, stored as "
        f"{real.stored_as}; generated clips stored as {fake.stored_as}"
    )
    count = protocol.clips or min(len(fake.videos), len(real.videos))
    found = numbers(protocol, measures, fake, real, count, form, text)
    if jax.process_index() == 0:
        window, every = config.evaluate.window, config.evaluate.window_every
        firsts = real.values.get(WINDOWS)  # [n, 1, D]
        curve = results.window_curve(
            protocol,
            fake.values.get(WINDOWS),
            firsts,
            firsts[count:] if firsts is not None else None,
            windows(form.frames, window, every),
            dataclasses.replace(form, frames=window),
            text,
        )
        skipped = {"skipped": {"real": real.skipped, "generated": fake.skipped}}
        workdir_lib.write_json(
            workdir / FOLDER / "metrics.json", results.to_json(found) | curve | skipped
        )
        show(config, workdir / FOLDER, found, fake, real, curve)


def numbers(
    protocol: Protocol,
    measures: Measures,
    fake: Side,
    real: Side,
    count: int,
    form: ClipForm,
    text: str,
) -> dict[str, Result]:
    """All numbers of two folders by name, with N = `count` a side; `text` says which clips the real
    ones are.
    """
    means = results.clip_means(measures.generated, fake.values, "generated clips", real.values)
    found = {f"generated/{name}": result for name, result in means.items()}
    rows = real.values[FRECHET]
    found |= results.distances(
        protocol, fake.values[FRECHET], rows, rows[count:], form, "generated", text
    )
    if INCEPTION in real.values:
        found |= results.inception(fake.values[INCEPTION], real.values[INCEPTION])
    return found


def show(
    config: Config,
    directory: Path,
    found: dict[str, Result],
    fake: Side,
    real: Side,
    curve: dict,
) -> None:
    """Writes the pictures and the page, and prints the table."""
    sheet = [
        (f"{kind} {i}", side.read(i))
        for kind, side in (("real", real), ("generated", fake))
        for i in range(min(PICTURED_CLIPS, len(side.videos)))
    ]
    pictures.contact_sheet(directory / "contact_sheet.png", sheet)
    images = {"Real and generated clips": directory / "contact_sheet.png"}
    images |= draw_over_time(directory, curve)
    notes = [
        f"Real clips: {config.evaluate.real} ({len(real.videos)} used, {len(real.skipped)} left "
        f"out). Generated clips: {config.evaluate.fake} ({len(fake.videos)} used, "
        f"{len(fake.skipped)} left out)."
    ]
    if real.stored_as != fake.stored_as:
        notes.append(
            f"Real clips are stored as {real.stored_as} and generated ones as {fake.stored_as}: "
            "what compression did to one side alone is part of every distance here. Store both "
            "alike."
        )
        telemetry.say(f"evaluate: {notes[-1]}")
    report.write_page(
        directory / "report.html",
        "Generated against real clips",
        found,
        [ranked(fake, real)],
        images,
        notes,
        config.sample.frames_per_second,
    )
    print(results.table(found))
    print(f"  everything on one page          {directory / 'report.html'}")


def ranked(fake: Side, real: Side) -> report.Clips:
    """Best, median and worst generated clip, each beside the real clip nearest to it."""
    index, distance = neighbours.nearest(fake.values[FRECHET], real.values[FRECHET])
    chosen = report.best_median_worst(distance, higher_is_better=False)
    return report.Clips(
        "Generated clips",
        "Best, median and worst by the distance to the nearest real clip, which plays beside each.",
        pictures.pair_rows(
            [(fake.read(i), real.read(index[i])) for _, i in chosen],
            [
                (
                    f"{name}: {fake.videos[i].name}",
                    f"its nearest real clip: {real.videos[index[i]].name}",
                )
                for name, i in chosen
            ],
        ),
    )
