"""Time of one training step (forward and backward) at intervals of 1/8, 1/4, 1/2 and 1 of the full
length.

    python benchmarks/interval_step.py [--repeats=15]

The step runs in the fixed shape that `masking.capacities` gives for each interval, half of the
tokens masked. Prints milliseconds (the least of the repeats) and the share of the full step; a
quarter of the length should cost at most 0.4.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
from flax import nnx

from configs.base import get_config
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import from_config_dict
from mebt_jax.methods.masked.loss import masked_cross_entropy
from mebt_jax.methods.masked.masking import split_tokens
from mebt_jax.methods.masked.shape_buckets import step_shape

GRID = (16, 8, 8)
CODES = 1024
BATCH = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats

    base = from_config_dict(get_config())
    layers = ("encode", "latent") * 2 + ("encode", "decode", "update", "decode")
    config = dataclasses.replace(
        base.transformer,
        layers=layers,
        width=256,
        heads=8,
        latents=64,
        dtype="float32",
        remat="none",
        loss_block=512,
    )
    graphdef, params = nnx.split(
        MeBT(config, num_codes=CODES, grid=GRID, rngs=nnx.Rngs(0)), nnx.Param
    )
    codes = jax.random.randint(jax.random.key(0), (BATCH, *GRID), 0, CODES)

    @jax.jit
    def step(params, split):
        def loss_fn(params):
            model = nnx.merge(graphdef, params)
            hidden = model(
                split.context_codes,
                split.context_positions,
                split.context_valid,
                split.target_positions,
                split.target_valid,
            )
            return masked_cross_entropy(
                model,
                hidden,
                split.target_codes,
                split.target_valid,
                block=config.loss_block,
                label_smoothing=0.0,
            ).loss

        return jax.value_and_grad(loss_fn)(params)

    splits, shapes = {}, {}
    for interval in (GRID[0] // 8, GRID[0] // 4, GRID[0] // 2, GRID[0]):
        used = interval * GRID[1] * GRID[2]
        shapes[interval] = step_shape(base.masking, GRID, interval, used // 2, used - used // 2)
        counts = jnp.full(BATCH, used // 2)
        splits[interval] = split_tokens(
            jax.random.key(1), codes, interval, counts, counts, shape=shapes[interval]
        )
        jax.block_until_ready(step(params, splits[interval]))  # compiles

    times = {interval: [] for interval in splits}
    for _ in range(
        repeats
    ):  # in turn, so that other load on the machine falls on all of them alike
        for interval, split in splits.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, split))
            times[interval].append(1000 * (time.perf_counter() - start))
    full = min(times[GRID[0]])
    for interval, shape in shapes.items():
        least = min(times[interval])
        print(
            f"interval {interval:2d} of {GRID[0]}: C={shape.contexts:4d} M={shape.targets:4d} "
            f"{least:8.1f} ms, "
            f"{least / full:.2f} of the full step"
        )


if __name__ == "__main__":
    main()
