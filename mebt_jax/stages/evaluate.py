"""Fifth stage: measures tokenizer, transformer and generated clips on held-out clips, and shows them side by side."""

import dataclasses
import functools
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mebt_jax.config import Config
from mebt_jax.data import pipeline, sources
from mebt_jax.metrics import codes as code_metrics, neighbours, protocols, report, results, shapes_physics
from mebt_jax.metrics.frechet import frechet_distance
from mebt_jax.metrics.protocols import Protocol
from mebt_jax.metrics.results import Result, mean, number
from mebt_jax.metrics.statistics import Estimate
from mebt_jax.runtime import mesh as mesh_lib, pictures, telemetry, workdir as workdir_lib
from mebt_jax.stages import evaluate_tokenizer, feature_networks, transformer as transformer_stage
from mebt_jax.stages.evaluated_clips import (
    GeneratedClips, MeasuredClips, compiled_measure, decode_some, generated_clips, load_generated, measure_clips)
from mebt_jax.stages.tokenizer import load_tokenizer
from mebt_jax.stages.transformer import TokenizerOnMesh, TrainedTransformer, load_transformer

STAGE = "evaluate"
PICTURED_CLIPS = 4
PHYSICS_CLIPS = 32  # of each kind, on which the physics of moving shapes is measured
HELD_OUT, TRAIN = "held-out, the middle of each record", "training, a random place in each record"
UNPLOTTED = ("learning_rate", "gradient_norm", "interval", "l2", "commitment")  # curves.png of each stage has them all


def run(config: Config, workdir: Path) -> None:
    """Writes metrics.json, report.html, contact_sheet.png and curves.png, and prints a table.

    Raises:
        UserError: the mesh, the batch size or a checkpoint do not fit, the generated clips are of another tokenizer, or there
            are fewer clips or other weights than the protocol asks for.
    """
    if workdir_lib.tokenizer_alone(config, workdir):
        evaluate_tokenizer.run(config, workdir)
        return
    # ---- models and data --------------------------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    size = config.evaluate.batch_size
    mesh_lib.check_batch_size(mesh, size, "config.evaluate.batch_size")
    protocol = protocols.for_data(config.evaluate.protocol, config.data.source, config.data.frames)
    networks = feature_networks.load(protocol, config)
    tokenizer = load_tokenizer(config, workdir, mesh)
    transformer = load_transformer(config, workdir, mesh, tokenizer.content_hash)
    pixels = TokenizerOnMesh(tokenizer, mesh)
    generated_codes = load_generated(workdir / "sample", tokenizer.content_hash)
    clip_sources = sources.open_sources(config, workdir)
    real_source = clip_sources.train if protocol.reals == "train" else clip_sources.validation
    protocols.check_counts(protocol, real=len(real_source), fake=len(generated_codes))

    # ---- clips ------------------------------------------------------------------------------------------------------
    shapes = config.data.source == "moving_shapes"
    keep = PHYSICS_CLIPS if shapes else PICTURED_CLIPS
    count = max(config.evaluate.clips, protocol.clips)
    real_networks = feature_networks.for_reals(networks, protocol, config)
    measured = compiled_measure(real_networks, feature_networks.load_lpips(config), mesh)
    held_out = measure_clips(pixels, measured, pipeline.validation_batches(clip_sources, config, size, -(-count // size)),
                             len(clip_sources.validation), keep, "held-out clips")
    train_batches = islice(pipeline.train_batches(clip_sources, config, size), -(-count // size))
    train = measure_clips(pixels, measured, train_batches, len(clip_sources.train), 0, "training clips")
    generated = generated_clips(generated_codes, pixels, feature_networks.with_windows(networks, config), size,
                                max(keep, 2 * PICTURED_CLIPS))

    # ---- numbers ----------------------------------------------------------------------------------------------------
    found = tokenizer_numbers(held_out, train, config.tokenizer.codes)
    found |= transformer_numbers(config, transformer, held_out, mesh)
    found |= unigram_numbers(held_out.codes, train.codes, config.tokenizer.codes)
    over_entropy = found["transformer/nll"].estimate.value / max(found["unigram/entropy"].estimate.value, 1e-9)
    found["nll_over_unigram_entropy"] = number(over_entropy, "transformer/nll over unigram/entropy", len(held_out.codes))
    found |= distance_numbers(protocol, generated, held_out, train, config.data.frames)
    quality = -neighbours.nearest(generated.features["frechet"], held_out.measures["frechet/real"])[1]  # [n]
    if shapes:
        physics, quality = physics_numbers(generated, held_out)
        found |= physics
    real_windows = {"windows": held_out.measures["windows/real"]} if "windows/real" in held_out.measures else {}
    curve = results.window_curve(protocol, generated.features, real_windows, config.evaluate, config.data.frames, HELD_OUT)

    # ---- results ----------------------------------------------------------------------------------------------------
    chosen = report.best_median_worst(quality, higher_is_better=True)
    chosen_clips = decode_some(generated_codes[[i for _, i in chosen]], pixels, size)
    shown = [(f"{name}: clip {i}", video) for (name, i), video in zip(chosen, chosen_clips)]
    if jax.process_index() == 0:
        workdir_lib.write_json(workdir / STAGE / "metrics.json", results.to_json(found) | curve)
        show(config, workdir, found, held_out, generated, shown, curve)
    workdir_lib.mark_done(config, workdir, STAGE, tokenizer=tokenizer.content_hash)


# ---- numbers --------------------------------------------------------------------------------------------------------------


def tokenizer_numbers(held_out: MeasuredClips, train: MeasuredClips, num_codes: int) -> dict[str, Result]:
    definitions = {
        "psnr": "dB, peak 1: mean over held-out clips of the PSNR of each whole clip, uint8 against uint8",
        "ssim": "mean over held-out clips, their frames and channels; Gaussian window 11, sigma 1.5",
        "l1": "mean absolute difference of values in [0, 1] over held-out clips",
        "lpips": "mean over held-out clips and their frames; VGG16, pixels in [-1, 1]",
    }
    found = {f"tokenizer/{name}": mean(held_out.measures[name], text) for name, text in definitions.items()
             if name in held_out.measures}
    found["tokenizer/train_psnr"] = mean(train.measures["psnr"], "dB, the same PSNR over training clips")
    counts = code_metrics.count_codes(held_out.codes, num_codes)
    found["tokenizer/usage"] = number(code_metrics.usage(counts), f"share of the {num_codes} codes that occur in the held-out "
                                      f"clips", len(held_out.codes))
    found["tokenizer/perplexity"] = number(code_metrics.perplexity(counts), "exp(entropy) of the code frequencies of the "
                                           "held-out clips", len(held_out.codes))
    return found


def transformer_numbers(config: Config, transformer: TrainedTransformer, held_out: MeasuredClips,
                        mesh: Mesh) -> dict[str, Result]:
    definitions = {
        "nll": "nats per masked token: averaged weights, whole held-out clips, mean over mask ratios spread evenly over the "
               "training schedule, masks of a fixed seed",
        "accuracy": "share of the masked tokens of the same draws whose most probable code is right",
    }
    step = functools.partial(transformer_stage.validation_step, graphdef=transformer.graphdef, config=config.transformer)
    jitted = jax.jit(step, static_argnames="shape", out_shardings=mesh_lib.replicated(mesh))
    values = transformer_stage.validation(jitted, transformer.params, held_out.device_codes, config, mesh)
    return {f"transformer/{name}": number(value, definitions[name], len(held_out.codes)) for name, value in values.items()}


def unigram_numbers(held_out: np.ndarray, train: np.ndarray, num_codes: int) -> dict[str, Result]:
    counts, train_counts = code_metrics.count_codes(held_out, num_codes), code_metrics.count_codes(train, num_codes)
    return {
        "unigram/entropy": number(
            code_metrics.entropy(counts), "nats per token: entropy of the code frequencies of the held-out clips, the least "
            "that any model without context can reach there", len(held_out)),
        "unigram/train_cross_entropy": number(
            code_metrics.cross_entropy(counts, train_counts), "nats per token of the held-out clips under the code "
            "frequencies (plus one) of the training clips", len(held_out)),
    }


def distance_numbers(protocol: Protocol, generated: GeneratedClips, held_out: MeasuredClips, train: MeasuredClips,
                     frames: int) -> dict[str, Result]:
    """Generated and reconstructed clips against real ones, and copies of training clips."""
    real, other, reals = (train, held_out, TRAIN) if protocol.reals == "train" else (held_out, train, HELD_OUT)
    fake = generated.features["frechet"]
    real_rows, other_rows = real.measures["frechet/real"], other.measures["frechet/real"]
    rebuilt = other.measures["frechet/rebuilt"]
    found = results.distances(protocol, fake, real_rows, other_rows, frames, "generated", reals)
    if not found:
        return found
    # At the N of the generated clips, so that the two can be compared: what is left between them is the transformer's.
    count = next(iter(found.values())).estimate.count
    found |= {name: result for name, result in results.distances(
        protocol, rebuilt[:count], real_rows[:count], other_rows[:count], frames, "reconstructed", reals).items()
        if name.endswith(("frechet", "kernel"))}
    own = held_out.measures["frechet/real"]
    paired = frechet_distance(held_out.measures["frechet/rebuilt"], own, protocol.unbiased)
    found["reconstructed/paired_frechet"] = Result(
        Estimate(paired, len(own), 1, real_floor=0.0, real_floor_count=len(own)),
        f"{protocol.measure} of held-out clips after the tokenizer and the same clips before it; on I3D features this is rFVD",
        protocol.describe(len(own), frames, 1, f"{HELD_OUT}, each against itself"))
    share = neighbours.copied_share(fake, own, train.measures["frechet/real"])
    found["memorisation/close_share"] = Result(
        Estimate(share, len(fake), 1, (share * (1 - share) / len(fake))**0.5, real_floor=0.05, real_floor_count=len(own)),
        f"share of generated clips nearer to one of {len(train.codes)} training clips than 95 % of the held-out clips are; "
        f"0.05 for a model that draws anew, 1 for one that recites")
    if "inception/real" in real.measures:
        found |= results.inception(generated.features["inception"], real.measures["inception/real"])
    return found


def physics_numbers(generated: GeneratedClips, held_out: MeasuredClips) -> tuple[dict[str, Result], np.ndarray]:
    """(how well generated and reconstructed moving shapes keep to the laws of their world, score [n] of generated)."""
    reals, rebuilt = zip(*held_out.shown)
    kinds = {"generated": generated.shown[:PHYSICS_CLIPS], "reconstructed": rebuilt, "real": reals}
    scores = {kind: shapes_physics.physics(videos) for kind, videos in kinds.items()}
    found = {}
    for kind in ("generated", "reconstructed"):
        for name, text in shapes_physics.DEFINITIONS.items():
            measured = mean(scores[kind][name], f"{shapes_physics.NAME} of {kind} clips: {text}")
            reached = mean(scores["real"][name], "").estimate
            estimate = dataclasses.replace(measured.estimate, real_floor=reached.value if reached.count else None,
                                           real_floor_count=reached.count)
            if estimate.count:
                found[f"physics_{kind}/{name}"] = dataclasses.replace(measured, estimate=estimate)
    return found, scores["generated"]["score"]


# ---- pictures and table ---------------------------------------------------------------------------------------------------


def show(config: Config, workdir: Path, found: dict[str, Result], held_out: MeasuredClips, generated: GeneratedClips,
         chosen: list[tuple[str, np.ndarray]], curve: dict[str, Any]) -> None:
    """Draws the pictures, writes the page, and prints the table and where everything is."""
    directory = workdir / STAGE
    pairs = held_out.shown[:PICTURED_CLIPS]
    pictures.contact_sheet(directory / "contact_sheet.png", sheet_rows(pairs, generated.shown[:2 * PICTURED_CLIPS]))
    pictures.curves(directory / "curves.png", both_curves(workdir), title=config.name)
    images = {"Real, reconstructed and generated clips": directory / "contact_sheet.png"}
    if curve:
        pictures.curves(directory / "over_time.png", results.curve_points(curve), curve["over_time"]["protocol"], "first frame")
        images["Quality over the length of a clip"] = directory / "over_time.png"
    images["Training"] = directory / "curves.png"
    shapes = config.data.source == "moving_shapes"
    ranking = "by their physics score" if shapes else "by the distance to the nearest held-out clip"
    rows = [report.Clips("Generated clips", f"Best, median and worst, {ranking}.", chosen),
            report.Clips("Held-out clips and their reconstructions", "What the tokenizer alone can show.",
                         [one for i, (real, rebuilt) in enumerate(pairs) for one in ((f"real {i}", real),
                                                                                    (f"reconstructed {i}", rebuilt))])]
    report.write_page(directory / "report.html", f"Evaluation of {config.name}", found, rows, images,
                      frames_per_second=config.sample.frames_per_second)
    print(results.table(found))
    for what, path in {
        "generated clips, mp4 and GIF": workdir / "sample" / "clips",
        "everything on one page": directory / "report.html",
        "real, reconstructed, generated": directory / "contact_sheet.png",
        "loss curves": directory / "curves.png",
        "numbers and their definitions": directory / "metrics.json",
    }.items():
        print(f"  {what:31s} {path}")


def sheet_rows(pairs: list[tuple[np.ndarray, np.ndarray]], generated: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Each real clip above its reconstruction, then the generated ones."""
    rows = [row for i, (real, rebuilt) in enumerate(pairs) for row in ((f"real {i}", real), (f"reconstructed {i}", rebuilt))]
    return rows + [(f"generated {i}", video) for i, video in enumerate(generated)]


def both_curves(workdir: Path) -> list[dict[str, Any]]:
    """The records of both training stages, with the stage in front of each name."""
    records = []
    for stage in ("tokenizer", "transformer"):
        for record in telemetry.read_metrics(workdir / stage / "metrics.jsonl"):
            records.append({name if name == "step" else f"{stage}/{name}": value for name, value in record.items()
                            if not name.endswith(UNPLOTTED)})
    return records
