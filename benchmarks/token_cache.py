"""What a step of the transformer saves when its tokens are stored (config.data.tokens), at the
sizes of configs/folder.py.

    python -m benchmarks.token_cache

Both kinds of step, with the tokenizer in it and without, take turns in one run, so that other
programs on the machine disturb both; the tokenizer's weights are random, which takes the same time.
"""

import argparse
import time

import jax
import numpy as np
from flax import nnx

from configs import folder
from mebt_jax.config import from_config_dict
from mebt_jax.methods.masked.masking import draw_masking
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import create_sharded, new_state
from mebt_jax.stages import prior
from mebt_jax.stages.tokenizer import TrainedTokenizer, abstract_tokenizer
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--paper-tokenizer",
        action="store_true",
        help="the paper's convolutions at full resolution, unfolded",
    )
    options = parser.parse_args()

    values = folder.get_config()
    if options.paper_tokenizer:
        values.tokenizer.patch, values.tokenizer.hidden, values.tokenizer.norm = (
            (1, 1, 1),
            32,
            "group",
        )
    values.masking.interval_schedule, values.masking.splits = "longest", 1  # one program
    config = from_config_dict(values)
    training = config.transformer.training
    mesh = mesh_lib.make_mesh(config.mesh)
    weights = nnx.split(Tokenizer(config.tokenizer, rngs=nnx.Rngs(0)))[1]
    codebook = quantizers.init_codebook(config.tokenizer, jax.random.key(0))
    encoder = prior.TokenizerOnMesh(
        TrainedTokenizer(abstract_tokenizer(config)[0], weights, codebook, ""), mesh
    )

    graphdef, abstract_params = prior.abstract_transformer(config)
    optimizer = make_optimizer(training, abstract_params)
    state, shardings = create_sharded(
        lambda: new_state(
            nnx.state(
                prior.new_transformer(config, jax.random.key(1), codebook.embeddings), nnx.Param
            ),
            optimizer,
            ema=True,
        ),
        mesh,
        config.runtime.fsdp_min_elements,
    )
    step_of = prior.step_programs(config, graphdef, optimizer, shardings, mesh)
    draw = draw_masking(config.masking, config.grid, training.batch_size, seed=0, step=0)
    size = (
        training.batch_size,
        config.data.frames,
        config.data.resolution,
        config.data.resolution,
        3,
    )
    rows = {"video": np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)}
    stored = {"codes": np.asarray(encoder.codes_of(rows))}

    times: dict[str, list[float]] = {"video": [], "codes": []}
    for _ in range(options.rounds + 1):
        for given in (rows, stored):
            start = time.perf_counter()
            state, _ = step_of(draw.shape)(
                state, encoder.codes_of(given), *prior.place(draw, mesh), jax.random.key(2)
            )
            jax.block_until_ready(state)
            times[next(iter(given))].append(time.perf_counter() - start)
    encoding, without = (1e3 * float(np.median(times[name][1:])) for name in ("video", "codes"))
    print(
        f"batch {training.batch_size}, {config.data.frames} frames of "
        f"{config.data.resolution}x{config.data.resolution}, median of "
        f"{options.rounds}: {encoding:.0f} ms a step with the tokenizer, {without:.0f} ms from "
        "stored tokens, "
        f"ratio {encoding / without:.2f}"
    )


if __name__ == "__main__":
    main()
