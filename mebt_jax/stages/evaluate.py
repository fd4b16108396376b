"""Fifth stage: measures tokenizer, transformer and generated clips on held-out clips, and shows them side by side."""

import dataclasses
import functools
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mebt_jax.config import Config
from mebt_jax.data import pipeline, sources
from mebt_jax.errors import UserError
from mebt_jax.metrics import codes as code_metrics, random_features, reconstruction
from mebt_jax.metrics.frechet import frechet_distance
from mebt_jax.metrics.kernel import polynomial_mmd
from mebt_jax.runtime import mesh as mesh_lib, pictures, telemetry, workdir as workdir_lib
from mebt_jax.stages import transformer as transformer_stage
from mebt_jax.stages.sample import on_host
from mebt_jax.stages.tokenizer import load_tokenizer
from mebt_jax.stages.transformer import TokenizerOnMesh, TrainedTransformer, load_transformer

STAGE = "evaluate"
PICTURED_CLIPS = 4
UNPLOTTED = ("learning_rate", "gradient_norm", "interval", "l2", "commitment")  # curves.png of each stage has them all

# The protocol of every number; {n} held-out clips, {m} on each side of a distance, {v} codes.
DEFINITIONS = {
    "tokenizer/psnr": "dB, peak 1: mean over {n} held-out clips of the PSNR of each whole clip, uint8 against uint8",
    "tokenizer/train_psnr": "the same over as many training clips",
    "tokenizer/ssim": "mean over {n} held-out clips, their frames and channels; Gaussian window 11, sigma 1.5",
    "tokenizer/l1": "mean absolute difference of values in [0, 1] over {n} held-out clips",
    "tokenizer/usage": "share of the {v} codes that occur in {n} held-out clips",
    "tokenizer/perplexity": "exp(entropy) of the code frequencies of {n} held-out clips",
    "transformer/nll": "nats per masked token: averaged weights, {n} whole held-out clips, mean over mask ratios spread "
                       "evenly over the training schedule, masks of a fixed seed",
    "transformer/accuracy": "share of the masked tokens of the same draws whose most probable code is right",
    "unigram/entropy": "nats per token: entropy of the code frequencies of {n} held-out clips, the least that any model "
                       "without context can reach there",
    "unigram/train_cross_entropy": "nats per token of {n} held-out clips under the code frequencies (plus one) of {n} "
                                   "training clips",
    "nll_over_unigram_entropy": "transformer/nll over unigram/entropy",
    "distance/generated": f"{random_features.NAME} (not FVD): {{m}} generated and {{m}} held-out clips",
    "distance/reconstructed": f"{random_features.NAME}: {{m}} training clips after the tokenizer, and {{m}} held-out clips",
    "distance/real_floor": f"{random_features.NAME}: {{m}} training and {{m}} held-out clips, the value of perfect clips",
    "kernel_distance/generated": "unbiased polynomial MMD of the same features: {m} generated and {m} held-out clips",
    "kernel_distance/real_floor": "unbiased polynomial MMD of the same features: {m} training and {m} held-out clips",
}


@dataclasses.dataclass(frozen=True)
class MeasuredClips:
    """Clips that went through the tokenizer. All host arrays but `device_codes`."""

    pictures: list[tuple[np.ndarray, np.ndarray]]  # the first few: real and reconstructed, uint8 [F, H, W, 3]
    device_codes: list[jax.Array]  # batches [B, T, H, W], split over the mesh
    codes: np.ndarray  # int32 [n, T, H, W]
    measures: dict[str, np.ndarray]  # [n] or [n, D] each, see `measure`


def run(config: Config, workdir: Path) -> None:
    """Writes metrics.json, contact_sheet.png and curves.png, and prints a table.

    Raises:
        UserError: the mesh, the batch size or a checkpoint do not fit, or the generated clips are of another tokenizer.
    """
    directory = workdir / STAGE

    # ---- models and data --------------------------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    size = config.evaluate.batch_size
    mesh_lib.check_batch_size(mesh, size, "config.evaluate.batch_size")
    tokenizer = load_tokenizer(config, workdir, mesh)
    transformer = load_transformer(config, workdir, mesh, tokenizer.content_hash)
    pixels = TokenizerOnMesh(tokenizer, mesh)
    generated_codes = load_generated(workdir / "sample", tokenizer.content_hash)
    clip_sources = sources.open_sources(config, workdir)

    # ---- clips ------------------------------------------------------------------------------------------------------
    batches = max(1, config.evaluate.clips // size)
    measured = jax.jit(measure, out_shardings=mesh_lib.replicated(mesh))
    telemetry.say(f"{STAGE}: held-out clips, as many training clips, and {len(generated_codes)} generated ones")
    held_out = measure_clips(pixels, measured, pipeline.validation_batches(clip_sources, config, size, batches))
    train = measure_clips(pixels, measured,
                          islice(pipeline.train_batches(clip_sources, config, size), len(held_out.device_codes)))
    generated, features = generated_clips(generated_codes, pixels, size)

    # ---- numbers ----------------------------------------------------------------------------------------------------
    values = tokenizer_numbers(held_out, config.tokenizer.codes)
    values["tokenizer/train_psnr"] = float(train.measures["psnr"].mean())
    values |= transformer_numbers(config, transformer, held_out.device_codes, mesh)
    values |= unigram_numbers(held_out.codes, train.codes, config.tokenizer.codes)
    values["nll_over_unigram_entropy"] = values["transformer/nll"] / max(values["unigram/entropy"], 1e-9)
    compared = min(len(features), len(held_out.codes))
    values |= distance_numbers(features[:compared], train.measures, held_out.measures["features"][:compared])

    # ---- results ----------------------------------------------------------------------------------------------------
    if jax.process_index() == 0:
        facts = {"n": len(held_out.codes), "m": compared, "v": config.tokenizer.codes}
        workdir_lib.write_json(directory / "metrics.json", {
            name: {"value": value, "definition": DEFINITIONS[name].format(**facts)} for name, value in values.items()})
        pictures.contact_sheet(directory / "contact_sheet.png", sheet_rows(held_out.pictures, generated))
        pictures.curves(directory / "curves.png", both_curves(workdir), title=config.name)
        report(workdir, values)
    workdir_lib.mark_done(config, workdir, STAGE, tokenizer=tokenizer.content_hash)


# ---- clips ----------------------------------------------------------------------------------------------------------------


def measure(real: jax.Array, rebuilt: jax.Array) -> dict[str, jax.Array]:
    """Per-clip numbers [B] and features [B, D] of uint8 clips [B, F, H, W, 3] and their reconstructions."""
    x, y = real.astype(jnp.float32) / 255, rebuilt.astype(jnp.float32) / 255
    values = {
        "psnr": reconstruction.psnr(x, y),
        "l1": jnp.abs(x - y).mean(axis=(1, 2, 3, 4)),
        "features": random_features.random_features(real),
        "rebuilt_features": random_features.random_features(rebuilt),
    }
    if min(real.shape[2:4]) >= reconstruction.WINDOW:
        values["ssim"] = reconstruction.ssim(x, y)
    return values


def measure_clips(pixels: TokenizerOnMesh, measured: Any, batches: Iterable[dict[str, np.ndarray]]) -> MeasuredClips:
    """Sends batches of uint8 clips through the tokenizer and `measured`, the jitted `measure`."""
    mesh, shown, codes, measures = pixels.mesh, [], [], []
    for rows in batches:
        video = mesh_lib.put_batch(mesh, rows)["video"]  # [B, F, H, W, 3]
        codes.append(pixels.codes(rows["video"]))
        rebuilt = pixels.video(codes[-1])
        measures.append(jax.device_get(measured(video, rebuilt)))
        if not shown:
            shown = list(zip(on_host(video, mesh), on_host(rebuilt, mesh)))[:PICTURED_CLIPS]
    return MeasuredClips(pictures=shown, device_codes=codes, codes=np.concatenate([on_host(batch, mesh) for batch in codes]),
                         measures={name: np.concatenate([batch[name] for batch in measures]) for name in measures[0]})


def load_generated(directory: Path, tokenizer_hash: str) -> np.ndarray:
    """Codes int32 [n, T, H, W] that the sample stage wrote.

    Raises:
        UserError: there are none, or another tokenizer's.
    """
    manifest = workdir_lib.read_json(directory / "manifest.json")
    if manifest["tokenizer"] != tokenizer_hash:
        raise UserError(f"The clips in {directory} were generated for tokenizer {manifest['tokenizer']}, but the tokenizer "
                        f"here is {tokenizer_hash}; remove {directory} and run --stage=sample again.")
    with np.load(directory / "tokens.npz") as tokens:
        return tokens["codes"]


def generated_clips(codes: np.ndarray, pixels: TokenizerOnMesh, size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The first few generated clips, uint8 [F, H, W, 3], and the features [n, D] of all of codes [n, T, H, W]."""
    mesh = pixels.mesh
    extract = jax.jit(random_features.random_features, out_shardings=mesh_lib.replicated(mesh))
    padded = np.concatenate([codes, np.repeat(codes[-1:], -len(codes) % size, axis=0)])  # whole batches
    shown, features = [], []
    for start in range(0, len(padded), size):
        video = pixels.video(*mesh_lib.put_rows(mesh, padded[start:start + size]))  # [B, F, H, W, 3]
        features.append(np.asarray(extract(video)))
        if not shown:
            shown = list(on_host(video, mesh))[:min(2 * PICTURED_CLIPS, len(codes))]
    return shown, np.concatenate(features)[:len(codes)]


# ---- numbers --------------------------------------------------------------------------------------------------------------


def tokenizer_numbers(held_out: MeasuredClips, num_codes: int) -> dict[str, float]:
    values = {f"tokenizer/{name}": float(held_out.measures[name].mean()) for name in ("psnr", "ssim", "l1")
              if name in held_out.measures}
    counts = code_metrics.count_codes(held_out.codes, num_codes)
    return values | {"tokenizer/usage": code_metrics.usage(counts), "tokenizer/perplexity": code_metrics.perplexity(counts)}


def transformer_numbers(config: Config, transformer: TrainedTransformer, codes: list[jax.Array],
                        mesh: Mesh) -> dict[str, float]:
    step = functools.partial(transformer_stage.validation_step, graphdef=transformer.graphdef, config=config.transformer)
    jitted = jax.jit(step, static_argnames="shape", out_shardings=mesh_lib.replicated(mesh))
    values = transformer_stage.validation(jitted, transformer.params, codes, config, mesh)
    return {f"transformer/{name}": value for name, value in values.items()}


def unigram_numbers(held_out: np.ndarray, train: np.ndarray, num_codes: int) -> dict[str, float]:
    counts, train_counts = code_metrics.count_codes(held_out, num_codes), code_metrics.count_codes(train, num_codes)
    return {"unigram/entropy": code_metrics.entropy(counts),
            "unigram/train_cross_entropy": code_metrics.cross_entropy(counts, train_counts)}


def distance_numbers(generated: np.ndarray, train: dict[str, np.ndarray], held_out: np.ndarray) -> dict[str, float]:
    """Distances of generated, reconstructed and real features to held-out ones [m, D], all at the same m; none for m = 1."""
    count = len(held_out)
    if count < 2:
        return {}
    real, rebuilt = train["features"][:count], train["rebuilt_features"][:count]
    return {
        "distance/generated": frechet_distance(generated, held_out),
        "distance/reconstructed": frechet_distance(rebuilt, held_out),
        "distance/real_floor": frechet_distance(real, held_out),
        "kernel_distance/generated": polynomial_mmd(generated, held_out),
        "kernel_distance/real_floor": polynomial_mmd(real, held_out),
    }


# ---- pictures and table ---------------------------------------------------------------------------------------------------


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


def report(workdir: Path, values: dict[str, float]) -> None:
    """Prints the numbers and where everything is."""
    width = max(len(name) for name in values)
    print("\n".join(f"  {name:{width}s}  {value:10.4f}" for name, value in values.items()))
    for what, path in {
        "generated clips, mp4 and GIF": workdir / "sample" / "clips",
        "real, reconstructed, generated": workdir / STAGE / "contact_sheet.png",
        "loss curves": workdir / STAGE / "curves.png",
        "numbers and their definitions": workdir / STAGE / "metrics.json",
    }.items():
        print(f"  {what:31s} {path}")
