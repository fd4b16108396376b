"""Fifth stage: measures tokenizer, transformer and generated clips on held-out clips, and shows
them side by side.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mebt_jax.config import Config
from mebt_jax.data import measured_clips
from mebt_jax.data.measured_clips import ClipPerVideo
from mebt_jax.metrics import protocols, report, results, uncertainty
from mebt_jax.metrics.distances import codebook_usage as code_metrics
from mebt_jax.metrics.distances import neighbours
from mebt_jax.metrics.networks import extraction
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.results import Result, mean
from mebt_jax.metrics.uncertainty import Estimate
from mebt_jax.metrics.worlds import shapes_physics
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import pictures, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import prior as transformer_stage
from mebt_jax.stages.evaluation import evaluate_tokenizer, feature_networks
from mebt_jax.stages.evaluation.evaluated_clips import (
    GeneratedClips,
    MeasuredClips,
    compiled_measure,
    decode_some,
    generated_clips,
    load_generated,
    measure_clips,
)
from mebt_jax.stages.prior import TokenizerOnMesh, TrainedTransformer, load_transformer
from mebt_jax.stages.tokenizer import load_tokenizer

STAGE = "evaluate"
HELD_OUT = measured_clips.SPLITS["validation"]
PICTURED_CLIPS = 4
PHYSICS_CLIPS = 32  # of each kind, on which the physics of moving shapes is measured
CLOSEST_CLIPS = 3  # generated clips that are shown beside the training clip nearest to them
RANKED = "by the distance to the nearest held-out clip"
UNPLOTTED = (
    "learning_rate",
    "gradient_norm",
    "interval",
    "l2",
    "commitment",
)  # curves.png of each stage has them all


def run(config: Config, workdir: Path) -> None:
    """Writes metrics.json, report.html, contact_sheet.png and curves.png, and prints a table.

    Raises:
        UserError: the mesh, the batch size or a checkpoint do not fit, the generated clips are of
            another tokenizer, or there are fewer clips or other weights than the protocol asks for.
    """
    if workdir_lib.tokenizer_alone(config, workdir):
        evaluate_tokenizer.run(config, workdir)
        return
    # ---- models and data -------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    size = config.evaluate.batch_size
    mesh_lib.check_batch_size(mesh, size, "config.evaluate.batch_size")
    real_split = measured_clips.real_split(config, workdir)
    protocol = protocols.for_data(config.evaluate.protocol, real_split, config.data.frames)
    form = ClipForm(config.data.frames, config.data.resolution, config.data.frame_stride)
    networks = feature_networks.load(protocol, config)
    tokenizer = load_tokenizer(config, workdir, mesh)
    transformer = load_transformer(config, workdir, mesh, tokenizer.content_hash)
    pixels = TokenizerOnMesh(tokenizer, mesh)
    generated_codes = load_generated(workdir / "sample", tokenizer.content_hash)
    held_out_clips, train_clips = (
        measured_clips.open_clips(config, workdir, split) for split in ("validation", "train")
    )
    reals = train_clips if protocol.reals == "train" else held_out_clips
    protocols.check_counts(protocol, real=len(reals), fake=len(generated_codes))

    # ---- clips -----------------------------------------------------------------------------------
    shapes = {part.source for part in config.data.parts} == {"moving_shapes"}
    keep = PHYSICS_CLIPS if shapes else PICTURED_CLIPS
    count = max(config.evaluate.clips, protocol.clips)
    real_networks = feature_networks.for_reals(networks, protocol, config)
    measured = compiled_measure(real_networks, feature_networks.load_lpips(config), mesh)
    held_out = measure_clips(pixels, measured, held_out_clips, count, size, keep)
    train = measure_clips(pixels, measured, train_clips, count, size, 0)
    generated = generated_clips(
        generated_codes,
        pixels,
        feature_networks.with_windows(networks, config),
        size,
        max(keep, 2 * PICTURED_CLIPS),
    )

    # ---- numbers ---------------------------------------------------------------------------------
    found = tokenizer_numbers(held_out, train, config.tokenizer.codes)
    found |= transformer_numbers(config, transformer, held_out, train, mesh)
    found |= distance_numbers(protocol, generated, held_out, train, form, reals.text)
    quality = -neighbours.nearest(generated.features["frechet"], held_out.measures["frechet/real"])[
        1
    ]  # [n]
    if shapes:
        physics, quality = physics_numbers(generated, held_out)
        found |= physics
    real, other = (train, held_out) if protocol.reals == "train" else (held_out, train)
    window, every = config.evaluate.window, config.evaluate.window_every
    curve = results.window_curve(
        protocol,
        generated.features.get("windows"),
        real.measures.get("windows/real"),
        other.measures.get("windows/real"),
        extraction.windows(form.frames, window, every),
        dataclasses.replace(form, frames=window),
        reals.text,
    )

    # ---- results ---------------------------------------------------------------------------------
    chosen = report.best_median_worst(quality, higher_is_better=True)
    chosen_clips = decode_some(generated_codes[[i for _, i in chosen]], pixels, size)
    rows = [
        report.Clips(
            "Generated clips",
            f"Best, median and worst, {'by their physics score' if shapes else RANKED}.",
            [(f"{name}: clip {i}", video) for (name, i), video in zip(chosen, chosen_clips)],
        ),
        closest_to_training(generated_codes, generated, train, train_clips, pixels, size),
    ]
    made_from = {
        "tokenizer": tokenizer.content_hash,
        "transformer": f"step {transformer.step}, {transformer.weights} weights",
        **{f"network of {name}": network.name for name, network in networks.items()},
    }
    if jax.process_index() == 0:
        workdir_lib.write_json(
            workdir / STAGE / "metrics.json",
            results.to_json(found) | curve | {"made_from": made_from},
        )
        show(config, workdir, found, held_out, generated, rows, curve, made_from)
    workdir_lib.mark_done(config, workdir, STAGE, tokenizer=tokenizer.content_hash)


# ---- numbers -------------------------------------------------------------------------------------


def tokenizer_numbers(
    held_out: MeasuredClips, train: MeasuredClips, num_codes: int
) -> dict[str, Result]:
    found = evaluate_tokenizer.reconstruction_numbers(HELD_OUT, held_out)
    found["train_psnr"] = mean(train.measures["psnr"], "dB, the same PSNR over training clips")
    for name, (measure, biased, definition) in evaluate_tokenizer.code_measures(
        num_codes, HELD_OUT
    ).items():
        found[name] = of_codes(measure, held_out, train, definition, biased)
    return {f"tokenizer/{name}": result for name, result in found.items()}


def of_codes(
    measure: Callable[[np.ndarray], float],
    held_out: MeasuredClips,
    train: MeasuredClips,
    definition: str,
    biased: bool | None = True,
) -> Result:
    """A number of held-out codes [n, T, H, W], beside that of as many training clips."""
    estimate = uncertainty.of_samples(measure, held_out.codes, biased=biased)
    others = train.codes[: estimate.count]
    return Result(
        dataclasses.replace(estimate, real_floor=measure(others), real_floor_count=len(others)),
        f"{definition}; real clips: as many training clips",
    )


def transformer_numbers(
    config: Config,
    transformer: TrainedTransformer,
    held_out: MeasuredClips,
    train: MeasuredClips,
    mesh: Mesh,
) -> dict[str, Result]:
    """How well tokens are predicted, beside clips that were trained on and beside what a model
    without context can do.
    """
    definitions = {
        "nll": f"nats per masked token: {transformer.weights} weights, whole held-out clips, mean over mask ratios spread evenly "
        f"over the training schedule, masks of a fixed seed; real clips: as many training clips",
        "accuracy": "share of the masked tokens of the same draws whose most probable code is right; real clips: as for nll",
    }
    step = functools.partial(
        transformer_stage.validation_step, graphdef=transformer.graphdef, config=config.transformer
    )
    jitted = jax.jit(step, static_argnames="shape", out_shardings=mesh_lib.replicated(mesh))
    values, of_train = (
        transformer_stage.validation(jitted, transformer.params, clips.device_codes, config, mesh)
        for clips in (held_out, train)
    )
    values = {
        name: of_clips[: len(held_out.codes)] for name, of_clips in values.items()
    }  # [n]; the last batch was filled up
    found = {
        f"transformer/{name}": mean(of_clips, definitions[name], of_train[name][: len(train.codes)])
        for name, of_clips in values.items()
    }

    def count(codes: np.ndarray) -> np.ndarray:
        return code_metrics.count_codes(codes, config.tokenizer.codes)

    found["unigram/entropy"] = of_codes(
        lambda codes: code_metrics.entropy(count(codes)),
        held_out,
        train,
        "nats per token: entropy of the code frequencies of "
        "the held-out clips, the least that any model without context can reach there",
    )
    train_counts = count(train.codes)
    found["unigram/train_cross_entropy"] = Result(
        uncertainty.of_samples(
            lambda codes: code_metrics.cross_entropy(count(codes), train_counts),
            held_out.codes,
            biased=False,
        ),
        "nats per token of the held-out clips under the code frequencies (plus one) of the "
        "training clips",
    )
    found["nll_over_unigram_entropy"] = Result(
        uncertainty.of_samples(
            lambda nll, codes: nll.mean() / max(code_metrics.entropy(count(codes)), 1e-9),
            values["nll"],
            held_out.codes,
        ),
        "transformer/nll over unigram/entropy",
    )
    return found


def distance_numbers(
    protocol: Protocol,
    generated: GeneratedClips,
    held_out: MeasuredClips,
    train: MeasuredClips,
    form: ClipForm,
    reals: str,
) -> dict[str, Result]:
    """Generated and reconstructed clips against real ones, and copies of training clips; `reals`
    are those, in words.
    """
    real, other = (train, held_out) if protocol.reals == "train" else (held_out, train)
    fake = generated.features["frechet"]
    real_rows, other_rows = real.measures["frechet/real"], other.measures["frechet/real"]
    rebuilt = other.measures["frechet/rebuilt"]
    found = results.distances(protocol, fake, real_rows, other_rows, form, "generated", reals)
    if not found:
        return found
    # At the N of the generated clips, so that the two can be compared: what is left between them is
    # the transformer's.
    count = next(iter(found.values())).estimate.count
    found |= {
        name: result
        for name, result in results.distances(
            protocol,
            rebuilt[:count],
            real_rows[:count],
            other_rows[:count],
            form,
            "reconstructed",
            reals,
        ).items()
        if name.endswith(("frechet", "kernel"))
    }
    own = held_out.measures["frechet/real"]
    found["reconstructed/paired_frechet"] = evaluate_tokenizer.paired_frechet(
        HELD_OUT, held_out, HELD_OUT, protocol, form
    )
    share = neighbours.copied_share(fake, own, train.measures["frechet/real"])
    found["memorisation/close_share"] = Result(
        Estimate(
            share,
            len(fake),
            1,
            (share * (1 - share) / len(fake)) ** 0.5,
            real_floor=0.05,
            real_floor_count=len(own),
        ),
        f"share of generated clips nearer to one of {len(train.codes)} training clips than 95 % of "
        "the held-out clips are; "
        f"0.05 for a model that draws anew, 1 for one that recites",
        protocol.describe(
            len(fake), form, 1, f"training (N={len(train.codes)}) and held-out (N={len(own)})"
        ),
    )
    if "inception/real" in real.measures:
        found |= results.inception(generated.features["inception"], real.measures["inception/real"])
    return found


def physics_numbers(
    generated: GeneratedClips, held_out: MeasuredClips
) -> tuple[dict[str, Result], np.ndarray]:
    """(how well generated and reconstructed moving shapes keep to the laws of their world, score
    [n] of generated).
    """
    reals, rebuilt = zip(*held_out.shown)
    kinds = {"generated": generated.shown[:PHYSICS_CLIPS], "reconstructed": rebuilt, "real": reals}
    scores = {kind: shapes_physics.physics(videos) for kind, videos in kinds.items()}
    found = {}
    for kind in ("generated", "reconstructed"):
        for name, text in shapes_physics.DEFINITIONS.items():
            measured = mean(
                scores[kind][name],
                f"{shapes_physics.NAME} of {kind} clips: {text}",
                scores["real"][name],
            )
            if measured.estimate.count:
                found[f"physics_{kind}/{name}"] = measured
    return found, scores["generated"]["score"]


# ---- pictures and table --------------------------------------------------------------------------


def closest_to_training(
    codes: np.ndarray,
    generated: GeneratedClips,
    train: MeasuredClips,
    train_clips: ClipPerVideo,
    pixels: TokenizerOnMesh,
    size: int,
) -> report.Clips:
    """The generated clips, of codes [n, T, H, W], that are closest to a training clip, each with
    it: is it a copy?
    """
    index, distance = neighbours.nearest(
        generated.features["frechet"], train.measures["frechet/real"]
    )
    closest = np.argsort(distance, kind="stable")[:CLOSEST_CLIPS]
    pairs = [
        pair
        for i, video in zip(closest, decode_some(codes[closest], pixels, size))
        for pair in (
            (f"generated {i}, at distance {distance[i]:.3g}", video),
            (f"training clip {index[i]}, nearest to it", train_clips[int(index[i])]["video"]),
        )
    ]
    return report.Clips(
        "Memorisation",
        f"The generated clips closest to any of {len(train.codes)} training clips, each beside "
        f"that one: the same clip twice would be a copy.",
        pairs,
    )


def show(
    config: Config,
    workdir: Path,
    found: dict[str, Result],
    held_out: MeasuredClips,
    generated: GeneratedClips,
    rows: list[report.Clips],
    curve: dict[str, Any],
    made_from: dict[str, str],
) -> None:
    """Draws the pictures, writes the page, and prints the table and where everything is."""
    directory = workdir / STAGE
    pairs = held_out.shown[:PICTURED_CLIPS]
    pictures.contact_sheet(
        directory / "contact_sheet.png", sheet_rows(pairs, generated.shown[: 2 * PICTURED_CLIPS])
    )
    pictures.curves(directory / "curves.png", both_curves(workdir), title=config.name)
    images = {"Real, reconstructed and generated clips": directory / "contact_sheet.png"}
    if curve:
        pictures.curves(
            directory / "over_time.png",
            results.curve_points(curve),
            curve["over_time"]["protocol"],
            "first frame",
        )
        images["Quality over the length of a clip"] = directory / "over_time.png"
    images["Training"] = directory / "curves.png"
    rows = rows + [
        report.Clips(
            "Held-out clips and their reconstructions",
            "What the tokenizer alone can show.",
            [
                one
                for i, (real, rebuilt) in enumerate(pairs)
                for one in ((f"real {i}", real), (f"reconstructed {i}", rebuilt))
            ],
        )
    ]
    report.write_page(
        directory / "report.html",
        f"Evaluation of {config.name}",
        found,
        rows,
        images,
        [f"{what.capitalize()}: {name}." for what, name in made_from.items()],
        config.sample.frames_per_second,
    )
    print(results.table(found))
    for what, path in {
        "generated clips, mp4 and GIF": workdir / "sample" / "clips",
        "everything on one page": directory / "report.html",
        "real, reconstructed, generated": directory / "contact_sheet.png",
        "loss curves": directory / "curves.png",
        "numbers and their definitions": directory / "metrics.json",
    }.items():
        print(f"  {what:31s} {path}")


def sheet_rows(
    pairs: list[tuple[np.ndarray, np.ndarray]], generated: list[np.ndarray]
) -> list[tuple[str, np.ndarray]]:
    """Each real clip above its reconstruction, then the generated ones."""
    rows = [
        row
        for i, (real, rebuilt) in enumerate(pairs)
        for row in ((f"real {i}", real), (f"reconstructed {i}", rebuilt))
    ]
    return rows + [(f"generated {i}", video) for i, video in enumerate(generated)]


def both_curves(workdir: Path) -> list[dict[str, Any]]:
    """The records of both training stages, with the stage in front of each name."""
    records = []
    for stage in ("tokenizer", "transformer"):
        for record in telemetry.read_metrics(workdir / stage / "metrics.jsonl"):
            records.append(
                {
                    name if name == "step" else f"{stage}/{name}": value
                    for name, value in record.items()
                    if not name.endswith(UNPLOTTED)
                }
            )
    return records
