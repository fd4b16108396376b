"""Time of one training step (forward and backward) at intervals of 1/8, 1/4, 1/2 and 1 of the full
length.

    python -m benchmarks.interval_step [--repeats=15]

The step has the shape that `shape_buckets.step_shape` gives for each interval, with half of the
tokens masked. Prints milliseconds (the least of the repeats) and the fraction of the full step; a
quarter of the length should cost at most 0.4.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.config import default_config, from_config_dict
from mebt_jax.methods import METHODS
from mebt_jax.methods.masked.shape_buckets import step_shape

BATCH = 2
MODEL = {
    "layers": ("encode", "latent") * 2 + ("encode", "decode", "update", "decode"),
    "width": 256,
    "heads": 8,
    "num_latents": 64,
    "dtype": "float32",
    "remat": "none",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats

    values = default_config()
    values.data.frames = values.data.resolution = 64  # a grid of 16 x 8 x 8 tokens
    values.tokenizer.codebook_size = 1024
    values.backbone.update(MODEL)
    values.method.loss_block = 512
    config = from_config_dict(values)
    method = METHODS[config.method.kind].from_config(config)
    graphdef, params = nnx.split(method.create(jax.random.key(0)), nnx.Param)
    size = (BATCH, *config.grid)
    tokens = jax.random.randint(jax.random.key(0), size, 0, config.tokenizer.codebook_size)

    @jax.jit
    def step(params: nnx.State, examples: Any, weights: jax.Array) -> tuple[jax.Array, nnx.State]:
        def loss_fn(params: nnx.State) -> jax.Array:
            model = nnx.merge(graphdef, params)
            return method.loss(model, examples, None, jax.random.key(0))[0] / weights.sum()

        return jax.value_and_grad(loss_fn)(params)

    full, height, width = config.grid
    prepared, shapes = {}, {}
    for interval in (full // 8, full // 4, full // 2, full):
        used = interval * height * width
        shapes[interval] = step_shape(config.method, config.grid, interval, used // 2, used // 2)
        half = jnp.full(BATCH, used // 2)
        prepared[interval] = method.prepare(
            tokens, (interval, half, half), jax.random.key(1), static=shapes[interval]
        )
        jax.block_until_ready(step(params, *prepared[interval]))  # compiles

    times = {interval: [] for interval in prepared}
    for _ in range(repeats):  # in turn, so that other load on the machine slows all of them alike
        for interval, batch in prepared.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, *batch))
            times[interval].append(1000 * (time.perf_counter() - start))
    for interval, shape in shapes.items():
        least = min(times[interval])
        print(
            f"interval {interval:2d} of {full}: C={shape.contexts:4d} M={shape.targets:4d} "
            f"{least:8.1f} ms, {least / min(times[full]):.2f} of the full step"
        )


if __name__ == "__main__":
    main()
