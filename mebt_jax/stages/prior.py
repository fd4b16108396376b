"""Third stage: trains a prior over the latents of a frozen tokenizer.

The method (`config.method.kind`) says what is learned, and with which backbone; nothing here knows
the kind.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data import conditions, pipeline, sources, token_cache
from mebt_jax.errors import UserError
from mebt_jax.methods import METHODS, earlier_priors
from mebt_jax.methods.interface import Draw, Method
from mebt_jax.methods.sampling_keys import clip_keys_program
from mebt_jax.methods.trained_prior import (
    STAGE,
    abstract_prior,
    load_prior,
    prior_hash,
    refuse_other_tokenizer,
    start_weights,
)
from mebt_jax.runtime import checkpoints, host_arrays, loop, pictures, telemetry
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.compilation import low_memory_compiler_options
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.runtime_config import TrainingConfig
from mebt_jax.runtime.train_state import (
    TrainState,
    accumulated_gradients,
    apply_gradients,
    create_sharded,
    new_state,
)
from mebt_jax.tokenizer.latent_space import LatentSpace
from mebt_jax.tokenizer.trained_tokenizer import load_tokenizer

PICTURED_CLIPS = 2
PICTURED_RATIO = 0.5

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch on the mesh."""

    latents: jax.Array  # [B, T, H, W, ...]
    condition: dict[str, jax.Array] | None


def run(config: Config, workdir: Path) -> None:
    """Trains to `config.prior.training.steps`, from the last checkpoint of the workdir if any.

    With 0 steps the prior of `config.prior.checkpoint` is used as it is.

    Raises:
        UserError: the mesh, the batch size, the tokenizer or a checkpoint do not fit, the loss is
            not finite, or the disk is full.
        SystemExit: 143 after SIGTERM, when everything is saved.
    """
    directory = workdir_lib.stage_folder(workdir, STAGE)

    # ---- mesh ------------------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    method = METHODS[config.method.kind].from_config(config)
    method.check_mesh(mesh)
    training = config.prior.training
    mesh_lib.check_batch_size(
        mesh, training.batch_size // training.microbatches, "config.prior.training.batch_size"
    )
    space = load_tokenizer(config, workdir, mesh)
    if training.steps == 0:
        trained = load_prior(config, workdir, mesh, space.content_hash)
        weights = prior_hash(trained.params)
        telemetry.say(f"{STAGE}: uses {weights} of {config.prior.checkpoint}, nothing to train")
        workdir_lib.mark_done(config, workdir, STAGE, weights=weights)
        return

    # ---- data ------------------------------------------------------------------------------------
    clip_sources = sources.open_sources(config, workdir)
    if config.data.tokens:
        clip_sources = token_cache.prepare(
            config, workdir, clip_sources, space.content_hash, space.encode_on_host
        )
    shard = host_arrays.host_shard(mesh)
    batches = pipeline.train_batches(clip_sources, config, training.batch_size, shard)

    # ---- model and state -------------------------------------------------------------------------
    graphdef, abstract_params = abstract_prior(method)
    optimizer = make_optimizer(training, abstract_params)
    root_key, params_key = jax.random.split(jax.random.key(config.runtime.seed))

    def create() -> TrainState:
        params = nnx.state(method.create(params_key, space.codebook), nnx.Param)
        return new_state(params, optimizer, ema=training.ema_decay > 0)

    state, shardings = create_sharded(create, mesh, config.runtime.fsdp_min_elements)
    state = start_weights(config, state, mesh, space.content_hash)
    refuse_other_tokenizer(directory / "checkpoints", space.content_hash)
    parameters = telemetry.write_parameter_overview(state.params, directory / "parameters.txt")
    telemetry.say(
        f"{STAGE}: {parameters:,} parameters on {mesh.size} device(s), "
        f"{np.prod(config.grid)} tokens a clip"
    )

    # ---- step ------------------------------------------------------------------------------------
    step_of = step_programs(config, method, graphdef, optimizer, shardings, mesh)

    def take_step(
        state: TrainState, rows: Mapping[str, np.ndarray], step: int
    ) -> tuple[TrainState, Metrics]:
        batch, draw = put_batch(space, rows, config.prior.conditions), method.draw(step)
        arrays = put_draw(draw, mesh)
        step_program = step_of(draw.static)
        state, metrics = step_program(state, batch.latents, batch.condition, arrays, root_key)
        return state, metrics | {k: np.float32(value) for k, value in draw.metrics.items()}

    # ---- validation ------------------------------------------------------------------------------
    held_out = [
        put_batch(space, rows, config.prior.conditions)
        for rows in pipeline.validation_batches(
            clip_sources, config, training.batch_size, training.validation_batches, shard
        )
    ]
    score = score_program(method, graphdef, mesh)

    def validate(state: TrainState, step: int) -> dict[str, float]:
        picture = directory / "pictures" / f"step_{step:08d}.png"
        draw_pictures(config, method, graphdef, state.averaged, space, held_out[0], picture)
        values = validation(score, method, state.averaged, held_out, config, mesh)
        return {name: float(clips.mean()) for name, clips in values.items()}

    # ---- loop ------------------------------------------------------------------------------------
    meta = {
        "stage": STAGE,
        "layout": earlier_priors.LAYOUT,
        "tokenizer": space.content_hash,
        "config": config_lib.to_dict(config),
        "versions": checkpoints.versions(),
    }
    state = loop.train(
        STAGE,
        directory,
        training,
        meta,
        state,
        batches,
        take_step=take_step,
        validate=validate,
        best_by=method.VALIDATION_METRIC,
        profile=config.runtime.profile,
        earlier_path=earlier_priors.earlier_path,
    )
    workdir_lib.mark_done(
        config,
        workdir,
        STAGE,
        step=training.steps,
        tokenizer=space.content_hash,
        weights=prior_hash(state.averaged),
        compiled_steps=step_of.cache_info().misses,
    )


# ---- step ----------------------------------------------------------------------------------------


def step_programs(
    config: Config,
    method: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    shardings: Any,
    mesh: Mesh,
) -> Callable[[Hashable], Step]:
    """`Draw.static` -> the `train_step` compiled for it, each once; `method.programs` lists all."""
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    possible = method.programs()

    @functools.cache
    def step_of(static: Hashable) -> Step:
        if static not in possible:
            raise ValueError(f"{static} is not among the programs of the method")
        telemetry.say(
            f"{STAGE}: compiling program {step_of.cache_info().misses} of at most "
            f"{len(possible)}, {static}"
        )
        step = functools.partial(
            train_step,
            method=method,
            graphdef=graphdef,
            optimizer=optimizer,
            training=config.prior.training,
            static=static,
        )
        return mesh_lib.jit(
            mesh,
            step,
            # The arrays of a draw lie as `put_draw` puts them.
            in_shardings=(shardings, batch, batch, None, everywhere),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
            compiler_options=low_memory_compiler_options(mesh.devices.flat[0].platform),
        )

    return step_of


def train_step(
    state: TrainState,
    latents: jax.Array,
    condition: Any,
    arrays: Sequence[jax.Array],
    root_key: jax.Array,
    *,
    method: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    training: TrainingConfig,
    static: Hashable,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on latents [B, T, H, W, ...]; `arrays` and `static` are a `Draw`'s."""
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(root_key, state.step))
    examples, weights = method.prepare(latents, arrays, prepare_key, static=static)

    def loss_fn(params: nnx.State, microbatch: Any, index: Any) -> tuple[jax.Array, Any]:
        examples, condition, weights = microbatch
        model, key = nnx.merge(graphdef, params), jax.random.fold_in(loss_key, index)
        loss, metrics = method.loss(model, examples, condition, key)
        means = jax.tree.map(lambda total: total / weights.sum(), {"loss": loss} | metrics)
        return means["loss"], (means, None)

    gradients, metrics, _ = accumulated_gradients(
        loss_fn, state.params, (examples, condition, weights), training.microbatches, weights
    )
    state = apply_gradients(state, gradients, optimizer, training.ema_decay)
    return state, metrics | {"gradient_norm": optax.global_norm(gradients)}


def put_batch(space: LatentSpace, rows: Mapping[str, np.ndarray], names: Sequence[str]) -> Batch:
    """This process's rows of a batch of the pipeline, encoded, with the named conditions."""
    condition = conditions.of_rows(rows, names)
    if condition is not None:
        condition = host_arrays.put_batch(space.mesh, condition)
    return Batch(space.encode(rows), condition)


def put_draw(draw: Draw, mesh: Mesh) -> tuple[jax.Array, ...]:
    """The arrays of a draw on the mesh: scalars everywhere, rows [B, ...] with their clips."""
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    return tuple(
        jax.device_put(array, batch if np.ndim(array) else everywhere) for array in draw.arrays
    )


# ---- validation ----------------------------------------------------------------------------------


def score_program(method: Method, graphdef: nnx.GraphDef, mesh: Mesh) -> Any:
    """`validation_step` compiled for the mesh: its scores lie on every device."""
    step = functools.partial(validation_step, method=method, graphdef=graphdef)
    return mesh_lib.jit(
        mesh, step, static_argnames="static", out_shardings=mesh_lib.replicated(mesh)
    )


def validation_step(
    params: nnx.State,
    latents: jax.Array,
    condition: Any,
    arrays: Sequence[jax.Array],
    key: jax.Array,
    *,
    method: Method,
    graphdef: nnx.GraphDef,
    static: Hashable,
) -> Metrics:
    """Scores [B] of each clip of latents [B, T, H, W, ...] at one draw."""
    examples, _ = method.prepare(latents, arrays, key, static=static)
    return method.scores(nnx.merge(graphdef, params), examples, condition)


def validation(
    score: Any,
    method: Method,
    params: nnx.State,
    batches: Sequence[Batch],
    config: Config,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """Scores of each clip, float32 [n], averaged over the method's fixed validation draws.

    Every call makes the same draws, so the numbers of different steps compare.
    """
    draws = method.validation_draws(len(batches), len(batches[0].latents))
    collected = []
    for index, (batch_index, draw) in enumerate(draws):
        batch = batches[batch_index]
        key = jax.random.fold_in(jax.random.key(config.runtime.seed), index)
        arrays = put_draw(draw, mesh)
        collected.append(
            score(params, batch.latents, batch.condition, arrays, key, static=draw.static)
        )
    fetched = jax.device_get(collected)
    of_batches = np.array([batch for batch, _ in draws])
    return {
        name: np.concatenate(
            [
                np.mean([fetched[i][name] for i in np.flatnonzero(of_batches == b)], axis=0)
                for b in range(len(batches))
            ]
        )
        for name in fetched[0]
    }


def draw_pictures(
    config: Config,
    method: Method,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    space: LatentSpace,
    batch: Batch,
    path: Path,
) -> None:
    """Contact sheet of clips: reconstructed, with half of their latents predicted, and generated.

    A method or a backbone that cannot draw says so in a UserError; then there are no pictures.
    """
    mesh, latents = space.mesh, batch.latents
    num_cells = int(np.prod(config.grid))
    num_known = int((1 - PICTURED_RATIO) * num_cells)
    order = np.random.default_rng(config.runtime.seed).permutation(num_cells)
    known = np.broadcast_to((order < num_known).reshape(config.grid), latents.shape[:4])
    known, indices = host_arrays.put_rows(mesh, known, np.arange(len(latents), dtype=np.int32))
    keys = clip_keys_program(mesh)(config.sample.seed, indices)
    quick = method.preview()
    shown = {"tokenizer": latents}
    half = {"num_known": num_known, "given": latents, "known": known}
    try:
        for name, task in (("half predicted", half), ("generated", {})):
            shown[name] = quick.sample(
                graphdef, params, keys, condition=batch.condition, mesh=mesh, **task
            ).latents
    except UserError as error:
        telemetry.say(f"{STAGE}: no pictures of drawn clips ({error})")
    videos = {name: host_arrays.local_rows(space.decode(x)) for name, x in shown.items()}
    if jax.process_index() == 0:
        rows = [
            (f"{name} {i}", video[i])
            for i in range(PICTURED_CLIPS)
            for name, video in videos.items()
            if i < len(video)
        ]
        pictures.contact_sheet(path, rows)
