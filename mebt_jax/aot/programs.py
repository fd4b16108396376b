"""The programs that a run of a config compiles, traced for devices that need not be there: nothing
is made but shapes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.masking import split_tokens
from mebt_jax.methods.masked.plan import DRAFT, Plan, build_plan, shared_sizes
from mebt_jax.methods.masked.presets import with_preset
from mebt_jax.methods.masked.shape_buckets import StepShape, all_shapes
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.flops import matrix_flops
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import new_state
from mebt_jax.stages import prior, tokenizer
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.training import losses


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile, and what is known of it before that. Operations and clips are those of
    all devices together.
    """

    name: str
    mesh: Mesh
    traced: jax.stages.Traced
    flops: int  # of the matrix products as they run, recomputation included
    # three times the forward pass for training: what the model needs, by the usual convention
    useful_flops: int
    clips: int
    batch_field: str
    resident_bytes: int  # arguments on each device: weights, averages, moments, and the batch
    turns: int = 1  # times that a batch runs it


def programs(step: str, config: Config, devices: Sequence[Any]) -> list[Program]:
    """The programs of `step`: "transformer" or "tokenizer" for a train step, "sample" for decoding
    a batch of clips.
    """
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    return {"transformer": transformer_step, "tokenizer": tokenizer_step, "sample": sampling}[step](
        config, mesh
    )


def transformer_step(config: Config, mesh: Mesh, shape: StepShape | None = None) -> list[Program]:
    """The train step of a StepShape, the largest if none is given."""
    training = config.transformer.training
    field = "config.transformer.training.batch_size"
    mesh_lib.check_batch_size(mesh, training.batch_size // training.accumulation, field)
    graphdef, params = prior.abstract_transformer(config)
    optimizer = make_optimizer(training, params)
    state = jax.eval_shape(lambda p: new_state(p, optimizer, ema=training.ema_decay > 0), params)
    shardings = mesh_lib.state_sharding(state, mesh, config.runtime.fsdp_min_elements)
    shape = shape or max(
        all_shapes(config.masking, config.grid), key=lambda s: (s.contexts + s.targets, s.targets)
    )
    step = prior.step_programs(config, graphdef, optimizer, shardings, mesh)(shape)

    # ---- arguments -------------------------------------------------------------------------------
    batch, scalar = training.batch_size, jax.ShapeDtypeStruct((), jnp.int32)
    counts = jax.ShapeDtypeStruct((batch,), jnp.int32)
    codes = jax.ShapeDtypeStruct((batch, *config.grid), jnp.int32)
    draw = (codes, scalar, counts, counts)
    traced = step.trace(state, *draw, _key())

    def forward(params: nnx.State, *draw: jax.Array) -> jax.Array:
        split = split_tokens(jax.random.key(0), *draw, shape=shape)
        return prior.predict(nnx.merge(graphdef, params), split, config.transformer, key=None).loss

    return [
        Program(
            "transformer train step",
            mesh,
            traced,
            matrix_flops(traced.jaxpr.jaxpr),
            3 * _flops(forward, params, *draw),
            batch,
            field,
            _resident(state, shardings),
        )
    ]


def tokenizer_step(config: Config, mesh: Mesh) -> list[Program]:
    """The train step of the tokenizer: with discriminators, and a perceptual network, where the
    config has them.
    """
    training = config.tokenizer.training
    field = "config.tokenizer.training.batch_size"
    mesh_lib.check_batch_size(mesh, training.batch_size // training.accumulation, field)
    parts = tokenizer.training_parts(config)
    state = jax.eval_shape(functools.partial(tokenizer.create_state, config, parts), _key(), _key())
    shardings = mesh_lib.state_sharding(state, mesh, config.runtime.fsdp_min_elements)
    step = tokenizer.step_programs(config, parts, shardings, mesh)[parts.opponents is not None]
    perceptual = tokenizer.abstract_perceptual() if config.tokenizer.perceptual_weight > 0 else None
    video = _video(config, training.batch_size)
    traced = step.trace(state, video, _key(), perceptual)
    graphdef, _ = tokenizer.abstract_tokenizer(config)

    def forward(params: nnx.State, codebook: quantizers.Codebook, video: jax.Array) -> jax.Array:
        return losses.tokenizer_loss(
            nnx.merge(graphdef, params), codebook, video.astype(jnp.float32), config.tokenizer
        )[0]

    useful = 3 * _flops(forward, state.params, state.statistics, video)
    return [
        Program(
            "tokenizer train step",
            mesh,
            traced,
            matrix_flops(traced.jaxpr.jaxpr),
            useful,
            training.batch_size,
            field,
            _resident(state, shardings),
        )
    ]


def sampling(config: Config, mesh: Mesh) -> list[Program]:
    """The passes of decoding a batch from nothing, each program as often as it runs, and the way
    from codes to pixels.
    """
    sample, field = with_preset(config.sample), "config.sample.batch_size"
    mesh_lib.check_batch_size(mesh, sample.batch_size, field)
    plan = build_plan(sample, math.prod(config.grid))
    batch = mesh_lib.batch_sharding(mesh)
    graphdef, params = prior.abstract_transformer(config)
    params = mesh_lib.with_sharding(params, mesh, config.runtime.fsdp_min_elements)
    keys = jax.eval_shape(
        decode.clip_keys, 0, jax.ShapeDtypeStruct((sample.batch_size,), jnp.int32)
    )
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=batch)
    tokens = (sample.batch_size, plan.num_tokens)
    state = decode.start.eval_shape(
        graphdef,
        params,
        keys,
        jax.ShapeDtypeStruct(tokens, jnp.int32),
        jax.ShapeDtypeStruct(tokens, bool),
        plan=plan,
        grid=config.grid,
        plain=False,
        sharding=batch,
    )
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch), state)
    resident = _resident((params, state))
    made = []
    for one, sizes, turns in _distinct(plan):
        traced = decode.pass_on(mesh.devices.flat[0].platform).trace(
            graphdef,
            params,
            state,
            keys,
            jax.eval_shape(functools.partial(decode.pass_inputs, 0, one)),
            kind=one.kind,
            sizes=sizes,
            by_confidence=one.kind == DRAFT and plan.order == "confidence",
            num_known=plan.num_known,
            partitions=plan.partitions,
            top_k=plan.top_k,
            top_p=plan.top_p,
            block=decode.LOGITS_BLOCK,
            sharding=batch,
        )
        useful = cost.pass_flops(
            config.transformer, config.tokenizer.codes, one, sizes, plan.num_tokens, plain=False
        )
        made.append(
            Program(
                f"{one.kind} pass of {sizes.targets} targets",
                mesh,
                traced,
                matrix_flops(traced.jaxpr.jaxpr),
                useful * sample.batch_size,
                sample.batch_size,
                field,
                resident,
                turns,
            )
        )
    return [*made, pixels(config, mesh, sample.batch_size)]


def pixels(config: Config, mesh: Mesh, batch_size: int) -> Program:
    """Codes of a batch to its frames."""
    batch = mesh_lib.batch_sharding(mesh)
    graphdef, params = tokenizer.abstract_tokenizer(config)
    weights = mesh_lib.with_sharding(
        (params, _codebook(config)), mesh, config.runtime.fsdp_min_elements
    )
    codes = jax.ShapeDtypeStruct((batch_size, *config.grid), jnp.int32, sharding=batch)
    program = functools.partial(prior.decode_clips, graphdef=graphdef)
    traced = jax.jit(mesh_lib.on_mesh(mesh, program), out_shardings=batch).trace(*weights, codes)
    flops = matrix_flops(traced.jaxpr.jaxpr)
    return Program(
        "codes to pixels",
        mesh,
        traced,
        flops,
        flops,
        batch_size,
        "config.sample.batch_size",
        _resident((*weights, codes)),
    )


def check_step(step: str) -> None:
    if step not in ("transformer", "tokenizer", "sample"):
        raise UserError(f"--step={step} is not known; give transformer, tokenizer or sample.")


def _distinct(plan: Plan) -> list[tuple[Any, Any, int]]:
    """One pass of each compiled program, its sizes, and how many passes share it."""
    found: dict[Any, list[Any]] = {}
    for one, sizes in zip(plan.passes, shared_sizes(plan)):
        found.setdefault((one.kind, sizes), []).append(one)
    return [(passes[0], sizes, len(passes)) for (_, sizes), passes in found.items()]


def _flops(function: Callable[..., jax.Array], *args: Any) -> int:
    return matrix_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _resident(arrays: Any, shardings: Any = None) -> int:
    """Bytes of abstract arrays on each device."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: x.sharding, arrays)
    sizes = jax.tree.map(
        lambda x, s: int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize, arrays, shardings
    )
    return sum(jax.tree.leaves(sizes))


def _codebook(config: Config) -> quantizers.Codebook:
    return jax.eval_shape(
        functools.partial(quantizers.init_codebook, config.tokenizer), jax.random.key(0)
    )


def _video(config: Config, batch_size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        (batch_size, config.data.frames, config.data.resolution, config.data.resolution, 3),
        jnp.uint8,
    )


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
