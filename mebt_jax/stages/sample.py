"""Fourth stage: generates clips with the trained transformer and tokenizer, writes them for people and for `evaluate`."""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mebt_jax.config import Config
from mebt_jax.runtime import checkpoints, mesh as mesh_lib, pictures, telemetry, workdir as workdir_lib
from mebt_jax.sampling import decode
from mebt_jax.sampling.plan import KINDS, Plan, build_plan, programs
from mebt_jax.stages.tokenizer import load_tokenizer
from mebt_jax.stages.transformer import TokenizerOnMesh, TrainedTransformer, load_transformer

STAGE = "sample"
PICTURED_CLIPS = 12


def run(config: Config, workdir: Path) -> None:
    """Writes clips/clip_0000.mp4 and .gif onward, tokens.npz, contact_sheet.png and manifest.json.

    Clip i follows from (weights, config.sample without clips and batch_size, i), so more clips leave the first ones as they
    are.

    Raises:
        UserError: the mesh, the batch size, the plan or a checkpoint do not fit.
    """
    directory = workdir / STAGE

    # ---- models -----------------------------------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch_size(mesh, config.sample.batch_size, "config.sample.batch_size")
    tokenizer = load_tokenizer(config, workdir, mesh)
    transformer = load_transformer(config, workdir, mesh, tokenizer.content_hash)
    pixels = TokenizerOnMesh(tokenizer, mesh)

    # ---- plan -------------------------------------------------------------------------------------------------------
    plan = build_plan(config.sample, math.prod(config.grid))
    batches = -(-config.sample.clips // config.sample.batch_size)
    telemetry.say(f"{STAGE}: {config.sample.clips} clips in {batches} batch(es) of {config.sample.batch_size}, "
                  f"{plan.num_passes} passes each by {len(programs(plan))} compiled programs")

    # ---- decode -----------------------------------------------------------------------------------------------------
    writes = jax.process_index() == 0
    if writes and (directory / "clips").exists():
        shutil.rmtree(directory / "clips")  # of other settings
    codes, shown, seconds = [], [], []
    with telemetry.progress_bar(STAGE, batches * plan.num_passes, 0) as bar:
        for batch in range(batches):
            start = time.perf_counter()
            first = batch * config.sample.batch_size
            batch_codes = generate(config, transformer, plan, mesh, first, bar)  # [B, T, H, W]
            codes.append(on_host(batch_codes, mesh))
            seconds.append(time.perf_counter() - start)
            videos = on_host(pixels.video(batch_codes), mesh)[:config.sample.clips - first]  # [b, F, H, W, 3]
            for i, video in enumerate(videos, start=first):
                if writes:
                    pictures.write_mp4(directory / "clips" / f"clip_{i:04d}.mp4", video, config.sample.frames_per_second)
                    pictures.write_gif(directory / "clips" / f"clip_{i:04d}.gif", video, config.sample.frames_per_second)
                if i < PICTURED_CLIPS:
                    shown.append((f"generated {i}", video))

    # ---- results ----------------------------------------------------------------------------------------------------
    hashes = {"tokenizer": tokenizer.content_hash, "transformer": checkpoints.content_hash(transformer.params)}
    if writes:
        np.savez_compressed(directory / "tokens.npz", codes=np.concatenate(codes)[:config.sample.clips])
        pictures.contact_sheet(directory / "contact_sheet.png", shown)
        workdir_lib.write_json(directory / "manifest.json", manifest(config, plan, seconds) | hashes | {
            "transformer_step": transformer.step})
    workdir_lib.mark_done(config, workdir, STAGE, clips=config.sample.clips, **hashes)


def generate(config: Config, transformer: TrainedTransformer, plan: Plan, mesh: Mesh, first: int, bar: Any) -> jax.Array:
    """Codes [B, T, H, W] of clips `first` to `first + B`, split over the mesh; moves the progress bar by the passes."""
    sharding = mesh_lib.batch_sharding(mesh)
    (indices,) = mesh_lib.put_rows(mesh, np.arange(first, first + config.sample.batch_size, dtype=np.int32))
    keys = jax.jit(decode.clip_keys, static_argnums=0, out_shardings=sharding)(config.sample.seed, indices)
    return decode.decode(transformer.graphdef, transformer.params, plan, config.grid, keys,
                         block=config.transformer.loss_block, sharding=sharding, on_pass=bar.update).codes


def manifest(config: Config, plan: Plan, seconds: list[float]) -> dict[str, Any]:
    """What was done, as plain JSON: settings, the passes by kind, and times (the first batch includes compilation)."""
    later = seconds[1:]
    return {
        "seed": config.sample.seed,
        "clips": config.sample.clips,
        "grid": list(config.grid),
        "frames_per_second": config.sample.frames_per_second,
        "passes": plan.num_passes,
        "passes_by_kind": {kind: plan.count(kind) for kind in KINDS},
        "committed_per_pass": [one.committed for one in plan.passes],
        "compiled_programs": len(programs(plan)),
        "seconds_first_batch": seconds[0],
        "seconds_per_later_batch": sum(later) / len(later) if later else None,
        "batch_size": config.sample.batch_size,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def on_host(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """The whole of a sharded array, on every process."""
    return np.asarray(jax.jit(lambda x: x, out_shardings=mesh_lib.replicated(mesh))(array))
