"""Time of a train step of the prior with stored tokens (config.data.tokens) and without, at the
sizes of configs/folder.py.

    python -m benchmarks.token_cache

Both kinds of step, with the tokenizer and without, run in turn, so that other programs on the
machine disturb both. The tokenizer's weights are random, which takes the same time.
"""

import argparse
import time

import jax
import numpy as np
from flax import nnx

from configs import folder
from mebt_jax.config import Config, from_config_dict
from mebt_jax.methods import METHODS
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import TrainState, create_sharded, new_state
from mebt_jax.stages import prior
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.latent_space import TokenSpace


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--paper-tokenizer",
        action="store_true",
        help="the paper's convolutions at full resolution, without patches",
    )
    options = parser.parse_args()

    values = folder.get_config()
    if options.paper_tokenizer:
        values.tokenizer.update({"patch": (1, 1, 1), "hidden": 32, "norm": "group"})
    values.method.interval_schedule, values.method.bucket_steps = "longest", 1  # one program
    measure(from_config_dict(values), options.rounds)


def measure(config: Config, rounds: int) -> None:
    training, data = config.prior.training, config.data
    mesh = mesh_lib.make_mesh(config.mesh)
    tokenizer = nnx.split(Tokenizer(config.tokenizer, rngs=nnx.Rngs(0)))
    space = TokenSpace(*tokenizer, content_hash="", mesh=mesh)

    method = METHODS[config.method.kind].from_config(config)
    graphdef, abstract_params = abstract_prior(method)
    optimizer = make_optimizer(training, abstract_params)

    def create() -> TrainState:
        params = nnx.state(method.create(jax.random.key(1), space.codebook), nnx.Param)
        return new_state(params, optimizer, ema=True)

    state, shardings = create_sharded(create, mesh, config.runtime.fsdp_min_elements)
    step_of = prior.step_programs(config, method, graphdef, optimizer, shardings, mesh)
    draw = method.draw(0)
    arrays = prior.put_draw(draw, mesh)
    size = (training.batch_size, data.frames, data.resolution, data.resolution, 3)
    rows = {"video": np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)}
    stored = {"tokens": np.asarray(space.encode(rows))}

    times: dict[str, list[float]] = {"video": [], "tokens": []}
    for _ in range(rounds + 1):
        for batch in (rows, stored):
            start = time.perf_counter()
            latents = space.encode(batch)
            state, _ = step_of(draw.static)(state, latents, None, arrays, jax.random.key(2))
            jax.block_until_ready(state)
            times[next(iter(batch))].append(time.perf_counter() - start)
    encoding, without = (1e3 * float(np.median(times[name][1:])) for name in times)
    print(
        f"batch {training.batch_size}, {data.frames} frames of "
        f"{data.resolution}x{data.resolution}, median of {rounds}: {encoding:.0f} ms a step with "
        f"the tokenizer, {without:.0f} ms from stored tokens, ratio {encoding / without:.2f}"
    )


if __name__ == "__main__":
    main()
