"""The programs that a run of a config compiles, traced for devices that need not be there. Every
array is abstract.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.interop import weight_folders
from mebt_jax.methods import METHODS
from mebt_jax.methods.interface import Draw, Method
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.metrics import measures as measures_lib
from mebt_jax.metrics import protocols
from mebt_jax.metrics.measures import Measures
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import sharding as sharding_lib
from mebt_jax.runtime.flops import count_flops, matrix_flops
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import new_state
from mebt_jax.stages import prior, tokenizer
from mebt_jax.stages.evaluation import feature_networks
from mebt_jax.tokenizer import latent_space
from mebt_jax.tokenizer.trained_tokenizer import abstract_tokenizer
from mebt_jax.tokenizer.training import losses


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile, and what is known before. Operations and clips are those of all
    devices together.
    """

    name: str
    mesh: Mesh
    traced: jax.stages.Traced
    flops: int  # of the matrix products as they run, with what is computed again
    # What the model needs, without padding; of training three times the forward pass, by the usual
    # convention.
    useful_flops: int
    clips: int
    batch_field: str  # of the config
    resident_bytes: int  # arguments on each device: weights, averages, moments, and the batch
    runs: int = 1  # for one batch

    @classmethod
    def of(
        cls,
        name: str,
        mesh: Mesh,
        traced: jax.stages.Traced,
        clips: int,
        batch_field: str,
        arguments: Any,
        useful_flops: int | None = None,
        runs: int = 1,
    ) -> "Program":
        """`arguments` are abstract arrays with their shardings; `useful_flops` None: all are."""
        flops = matrix_flops(traced.jaxpr.jaxpr)
        useful_flops = flops if useful_flops is None else useful_flops
        resident = sum(
            int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
            for x in jax.tree.leaves(arguments)
        )
        return cls(name, mesh, traced, flops, useful_flops, clips, batch_field, resident, runs)


def programs(step: str, config: Config, devices: Sequence[Any]) -> list[Program]:
    """The programs of a key of STEPS for a batch of clips."""
    return STEPS[step](config, mesh_lib.make_mesh(config.mesh, devices))


def check_step(step: str) -> None:
    """Raises UserError if there is no such step."""
    if step not in STEPS:
        raise UserError(f"--step={step} is not known; give one of {', '.join(STEPS)}.")


# ---- training ------------------------------------------------------------------------------------


def prior_step(config: Config, mesh: Mesh, static: Hashable = None) -> list[Program]:
    """The train step of the prior for a `Draw.static`, the largest if none is given."""
    training = config.prior.training
    field = "config.prior.training.batch_size"
    mesh_lib.check_batch_size(mesh, training.batch_size // training.microbatches, field)
    method = _method(config, mesh)
    graphdef, params = abstract_prior(method)
    optimizer = make_optimizer(training, params)
    state = jax.eval_shape(lambda p: new_state(p, optimizer, ema=training.ema_decay > 0), params)
    shardings = sharding_lib.state_sharding(state, mesh, config.runtime.fsdp_min_elements)
    static = method.programs()[-1] if static is None else static

    latents, arrays = _latents(config, mesh, training.batch_size), _draw(method.draw(0), mesh)
    step = prior.step_programs(config, method, graphdef, optimizer, shardings, mesh)(static)
    traced = step.trace(state, latents, None, arrays, _key())

    def forward(params: nnx.State, latents: jax.Array, arrays: Any) -> jax.Array:
        examples, _ = method.prepare(latents, arrays, jax.random.key(0), static=static)
        return method.loss(nnx.merge(graphdef, params), examples, None, jax.random.key(0))[0]

    return [
        Program.of(
            "prior train step",
            mesh,
            traced,
            training.batch_size,
            field,
            _placed(state, shardings),
            3 * count_flops(forward, params, latents, arrays),
        )
    ]


def tokenizer_step(config: Config, mesh: Mesh) -> list[Program]:
    """The train step of the tokenizer, with discriminators and a perceptual network if the config
    has them.
    """
    training = config.tokenizer.training
    field = "config.tokenizer.training.batch_size"
    mesh_lib.check_batch_size(mesh, training.batch_size // training.microbatches, field)
    parts = tokenizer.training_parts(config)
    state = jax.eval_shape(functools.partial(tokenizer.create_state, config, parts), _key(), _key())
    shardings = sharding_lib.state_sharding(state, mesh, config.runtime.fsdp_min_elements)
    step = tokenizer.step_programs(config, parts, shardings, mesh)[parts.disc_graphdef is not None]
    perceptual = tokenizer.abstract_lpips()[1] if config.tokenizer.perceptual_weight > 0 else None
    video = _video(config, mesh, training.batch_size)
    traced = step.trace(state, video, _key(), perceptual)

    def forward(params: nnx.State, model_state: nnx.State, video: jax.Array) -> jax.Array:
        model = nnx.merge(parts.graphdef, params, model_state)
        return losses.tokenizer_loss(model, video.astype(jnp.float32), config.tokenizer)[0]

    return [
        Program.of(
            "tokenizer train step",
            mesh,
            traced,
            training.batch_size,
            field,
            _placed(state, shardings),
            3 * count_flops(forward, state.params, state.model_state, video),
        )
    ]


# ---- sampling ------------------------------------------------------------------------------------


def sampling(config: Config, mesh: Mesh) -> list[Program]:
    """The programs that draw a batch from nothing, and the decoding of its latents into frames."""
    batch_size, field = config.sample.batch_size, "config.sample.batch_size"
    mesh_lib.check_batch_size(mesh, batch_size, field)
    graphdef, params = abstract_prior(method := _method(config, mesh))
    params = sharding_lib.with_sharding(params, mesh, config.runtime.fsdp_min_elements)
    passes = [
        Program.of(
            step.name,
            mesh,
            step.traced,
            batch_size,
            field,
            (params, step.state),
            step.useful_flops,
            step.turns,
        )
        for step in method.sampling_programs(graphdef, params, batch_size, mesh)
    ]
    return [*passes, latents_to_frames(config, mesh, batch_size, field)]


def latents_to_frames(
    config: Config, mesh: Mesh, batch_size: int, field: str, runs: int = 1
) -> Program:
    graphdef, variables = _tokenizer(config, mesh)
    latents = _latents(config, mesh, batch_size)
    decode = latent_space.compiled(mesh, latent_space.decode_tokens)
    traced = decode.trace(graphdef, variables, latents)
    arguments = (variables, latents)
    return Program.of("latents to frames", mesh, traced, batch_size, field, arguments, runs=runs)


# ---- evaluation ----------------------------------------------------------------------------------


def evaluation(config: Config, mesh: Mesh) -> list[Program]:
    """What the evaluate stage runs for a batch of real clips and a batch of generated ones.

    The weights of networks need not be there: I3D is part of it if the protocol needs it, C3D and
    LPIPS if the config names a folder, whatever the folder has.
    """
    batch_size, field = config.evaluate.batch_size, "config.evaluate.batch_size"
    mesh_lib.check_batch_size(mesh, batch_size, field)
    protocol = protocols.for_data(config.evaluate.protocol, "validation", config.data.frames)
    named = dataclasses.replace(config.evaluate, i3d=config.evaluate.i3d or "abstract")
    measures = feature_networks.load(
        protocol, dataclasses.replace(config, evaluate=named), _abstract_network
    )
    return [
        frames_to_latents(config, mesh, batch_size, field),
        latents_to_frames(config, mesh, batch_size, field, runs=2),
        *scores(config, mesh, batch_size, field),
        *measuring(measures, config, mesh, batch_size, field),
    ]


def frames_to_latents(config: Config, mesh: Mesh, batch_size: int, field: str) -> Program:
    graphdef, variables = _tokenizer(config, mesh)
    video = _video(config, mesh, batch_size)
    encode = latent_space.compiled(mesh, latent_space.encode_video)
    traced = encode.trace(graphdef, variables, video)
    return Program.of("frames to latents", mesh, traced, batch_size, field, (variables, video))


def scores(config: Config, mesh: Mesh, batch_size: int, field: str) -> list[Program]:
    """The validation of the prior, at every static that its draws for one batch have."""
    graphdef, params = abstract_prior(method := _method(config, mesh))
    params = sharding_lib.with_sharding(params, mesh, config.runtime.fsdp_min_elements)
    latents = _latents(config, mesh, batch_size)
    program = prior.score_program(method, graphdef, mesh)
    draws = [draw for _, draw in method.validation_draws(1, batch_size)]
    runs = collections.Counter(draw.static for draw in draws)
    return [
        Program.of(
            f"scores of the prior, {static}",
            mesh,
            program.trace(params, latents, None, _draw(draw, mesh), _key(), static=static),
            batch_size,
            field,
            (params, latents),
            runs=runs[static],
        )
        for static, draw in {draw.static: draw for draw in draws}.items()
    ]


def measuring(
    measures: Measures, config: Config, mesh: Mesh, batch_size: int, field: str
) -> list[Program]:
    """Every measure of every kind of clips."""
    video, found = _video(config, mesh, batch_size), []
    for kind in dataclasses.fields(measures):
        clips = (video, video) if kind.name == "pairs" else (video,)
        for name, measure in getattr(measures, kind.name).items():
            weights = jax.tree.map(
                lambda x: _array(x.shape, x.dtype, mesh_lib.replicated(mesh)), measure.weights
            )
            traced = measures_lib.program(measure, mesh).trace(weights, *clips)
            found.append(
                Program.of(
                    f"{name} of {kind.name} clips",
                    mesh,
                    traced,
                    batch_size,
                    field,
                    (weights, clips),
                )
            )
    return found


# By the values of --step.
STEPS: dict[str, Callable[[Config, Mesh], list[Program]]] = {
    "prior": prior_step,
    "tokenizer": tokenizer_step,
    "sample": sampling,
    "evaluate": evaluation,
}


# ---- abstract arrays -----------------------------------------------------------------------------


def _method(config: Config, mesh: Mesh) -> Method:
    method = METHODS[config.method.kind].from_config(config)
    method.check_mesh(mesh)
    return method


def _tokenizer(config: Config, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    graphdef, params, model_state = abstract_tokenizer(config)
    variables = nnx.merge_state(params, model_state)
    return graphdef, sharding_lib.with_sharding(variables, mesh, config.runtime.fsdp_min_elements)


def _abstract_network(
    folder: str, kind: str, **changes: Any
) -> tuple[nnx.GraphDef, nnx.State, str]:
    """A `feature_networks.Reader` that reads no folder."""
    network = nnx.eval_shape(lambda: weight_folders.NETWORKS[kind](**changes, rngs=nnx.Rngs(0)))
    return *nnx.split(network), "abstract"


def _array(shape: Sequence[int], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _placed(arrays: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: _array(x.shape, x.dtype, s), arrays, shardings)


def _video(config: Config, mesh: Mesh, batch_size: int) -> jax.ShapeDtypeStruct:
    size = (config.data.frames, config.data.resolution, config.data.resolution, 3)
    return _array((batch_size, *size), jnp.uint8, mesh_lib.batch_sharding(mesh))


def _latents(config: Config, mesh: Mesh, batch_size: int) -> jax.ShapeDtypeStruct:
    return _array((batch_size, *config.grid), jnp.int32, mesh_lib.batch_sharding(mesh))


def _draw(draw: Draw, mesh: Mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The arrays of a draw, as `prior.put_draw` places them."""
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    return tuple(
        _array(x.shape, x.dtype, batch if x.ndim else everywhere)
        for x in map(np.asarray, draw.arrays)
    )


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
