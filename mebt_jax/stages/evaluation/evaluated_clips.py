"""The clips that the evaluate stage looks at: held-out, training and generated ones, and what is
measured on each batch.

One batch of clips is in memory at a time, beside the few that are shown.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from mebt_jax.data.measured_clips import ClipPerVideo
from mebt_jax.errors import UserError
from mebt_jax.metrics.distances import reconstruction
from mebt_jax.metrics.networks import extraction
from mebt_jax.metrics.networks.extraction import Extractor
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.mesh import on_host
from mebt_jax.stages.prior import TokenizerOnMesh


@dataclasses.dataclass(frozen=True)
class MeasuredClips:
    """Clips that went through the tokenizer. All host arrays but `device_codes`."""

    shown: list[
        tuple[np.ndarray, np.ndarray]
    ]  # the first few: real and reconstructed, uint8 [F, H, W, 3]
    device_codes: list[jax.Array]  # batches [B, T, H, W], split over the mesh
    codes: np.ndarray  # int32 [n, T, H, W]
    measures: dict[str, np.ndarray]  # [n] or [n, D] each, see `measure`


@dataclasses.dataclass(frozen=True)
class GeneratedClips:
    shown: list[np.ndarray]  # the first few, uint8 [F, H, W, 3]
    features: dict[str, np.ndarray]  # of each network [n, D], or [n, windows, D]


Networks = dict[str, Extractor]
COMPARED = (
    "frechet"  # the network of the protocol's distance; reconstructions are compared by it alone
)


def measure(
    real: jax.Array,
    rebuilt: jax.Array,
    *,
    weights: dict[str, Any],
    networks: Networks,
    pairs: Networks,
) -> dict[str, jax.Array]:
    """Per-clip numbers [B], and features [B, D] by each network, of uint8 clips [B, F, H, W, 3] and
    their reconstructions.

    `pairs` are networks that take both; weights are by the names of all networks.
    """
    x, y = real.astype(jnp.float32) / 255, rebuilt.astype(jnp.float32) / 255
    values = {"psnr": reconstruction.psnr(x, y), "l1": jnp.abs(x - y).mean(axis=(1, 2, 3, 4))}
    if min(real.shape[2:4]) >= reconstruction.WINDOW:
        values["ssim"] = reconstruction.ssim(x, y)
    for name, network in pairs.items():
        values[name] = network.function(weights[name], real, rebuilt)
    for name, network in networks.items():
        values[f"{name}/real"] = network.function(weights[name], real)
        if name == COMPARED:
            values[f"{name}/rebuilt"] = network.function(weights[name], rebuilt)
    return values


def compiled_measure(
    networks: Networks, lpips: Extractor | None, mesh: Mesh
) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    """`measure` for clips that are split over the mesh, with "lpips" where its network is given."""
    everywhere = mesh_lib.replicated(mesh)
    pairs = {"lpips": lpips} if lpips else {}
    weights = jax.device_put(
        {name: network.weights for name, network in (networks | pairs).items()}, everywhere
    )
    run = jax.jit(
        functools.partial(measure, networks=networks, pairs=pairs), out_shardings=everywhere
    )
    return lambda real, rebuilt: run(real, rebuilt, weights=weights)


def measure_clips(
    pixels: TokenizerOnMesh,
    measured: Callable[..., dict[str, jax.Array]],
    clips: ClipPerVideo,
    count: int,
    size: int,
    keep: int,
) -> MeasuredClips:
    """Sends the first `count` clips, or as many as there are, through the tokenizer and `measured`,
    each once.

    Args:
        pixels: the tokenizer.
        measured: see `compiled_measure`.
        clips: real clips.
        count: clips to measure.
        size: of a batch.
        keep: clips to keep as pixels.
    """
    mesh = pixels.mesh
    if len(clips) < count:
        telemetry.say(
            f"evaluate: {count} clips are asked for and {len(clips)} are there ({clips.text}); "
            "each is measured once"
        )
    count = min(count, len(clips))
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    codes, measures = [], []
    batches = clips.batches(size, count, mesh_lib.host_share(mesh))
    for rows in tqdm(
        batches,
        total=-(-count // size),
        desc=f"evaluate: {clips.text.split(',')[0]} clips",
        unit="batch",
        disable=jax.process_index() != 0,
        mininterval=5,
    ):
        video = mesh_lib.put_batch(mesh, rows)["video"]  # [B, F, H, W, 3]
        codes.append(pixels.codes(rows["video"]))
        rebuilt = pixels.video(codes[-1])
        measures.append(jax.device_get(measured(video, rebuilt)))
        if len(shown) < keep:
            shown = (shown + list(zip(on_host(video, mesh), on_host(rebuilt, mesh))))[:keep]
    joined = {
        name: np.concatenate([batch[name] for batch in measures])[:count] for name in measures[0]
    }
    return MeasuredClips(
        shown[:count],
        codes,
        np.concatenate([on_host(batch, mesh) for batch in codes])[:count],
        joined,
    )


def load_generated(directory: Path, tokenizer_hash: str) -> np.ndarray:
    """Codes int32 [n, T, H, W] that the sample stage wrote.

    Raises:
        UserError: there are none, or another tokenizer's.
    """
    manifest = workdir_lib.read_json(directory / "manifest.json")
    if manifest["tokenizer"] != tokenizer_hash:
        raise UserError(
            f"The clips in {directory} were generated for tokenizer {manifest['tokenizer']}, but "
            "the tokenizer "
            f"here is {tokenizer_hash}; remove {directory} and run --stage=sample again."
        )
    with np.load(directory / "tokens.npz") as tokens:
        return tokens["codes"]


def generated_clips(
    codes: np.ndarray, pixels: TokenizerOnMesh, networks: Networks, size: int, keep: int
) -> GeneratedClips:
    """Features of all of codes [n, T, H, W], and the pixels of the first `keep` clips."""
    mesh = pixels.mesh
    runs = {name: extraction.compiled(network, mesh) for name, network in networks.items()}
    shown: list[np.ndarray] = []
    features: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    batches = extraction.batches(codes, size)
    for batch, count in tqdm(
        batches,
        total=-(-len(codes) // size),
        desc="evaluate: generated clips",
        unit="batch",
        disable=jax.process_index() != 0,
        mininterval=5,
    ):
        video = pixels.video(*mesh_lib.put_rows(mesh, batch))  # [B, F, H, W, 3]
        for name, run in runs.items():
            features[name].append(np.asarray(run(video))[:count])
        if len(shown) < keep:
            shown = (shown + list(on_host(video, mesh)[:count]))[:keep]
    return GeneratedClips(shown, {name: np.concatenate(rows) for name, rows in features.items()})


def decode_some(codes: np.ndarray, pixels: TokenizerOnMesh, size: int) -> list[np.ndarray]:
    """uint8 [F, H, W, 3] for each of a few codes [n, T, H, W], in batches of the compiled size."""
    videos = [
        on_host(pixels.video(*mesh_lib.put_rows(pixels.mesh, batch)), pixels.mesh)[:count]
        for batch, count in extraction.batches(codes, size)
    ]
    return [video for batch in videos for video in batch]
