"""Second stage: trains the 3D VQ tokenizer on clips, and loads a trained one for the stages after it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.config import Config, TokenizerConfig
from mebt_jax.data import clips, pipeline, sources
from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints, loop, mesh as mesh_lib, pictures, telemetry, workdir as workdir_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import (
    TrainState, accumulated_gradients, apply_gradients, create_sharded, join_pieces, new_state,
)
from mebt_jax.tokenizer import fitting, losses, quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer, own_codes, tokenizer_hash

STAGE = "tokenizer"
PICTURED_CLIPS = 4


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """A frozen tokenizer; `content_hash` names its weights and codes, whatever folder they came from."""

    graphdef: nnx.GraphDef
    params: nnx.State
    codebook: quantizers.Codebook
    content_hash: str


def run(config: Config, workdir: Path) -> None:
    """Trains to `config.tokenizer.training.steps`, from the last checkpoint of the workdir if there is one.

    Raises:
        UserError: the mesh, the batch size or a checkpoint do not fit, the loss is not finite, or the disk is full.
        SystemExit: 143 after SIGTERM, when everything is saved.
    """
    directory = workdir / STAGE

    # ---- mesh -------------------------------------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    training = config.tokenizer.training
    mesh_lib.check_batch_size(mesh, training.batch_size // training.accumulation, "config.tokenizer.training.batch_size")
    if config.tokenizer.checkpoint:
        found = load_tokenizer(config, workdir, mesh)
        telemetry.say(f"{STAGE}: {found.content_hash} of {config.tokenizer.checkpoint} is used, nothing to train")
        workdir_lib.mark_done(config, workdir, STAGE, tokenizer=found.content_hash)
        return

    # ---- data -------------------------------------------------------------------------------------------------------
    clip_sources = sources.open_sources(config, workdir)
    batches = pipeline.train_batches(clip_sources, config, training.batch_size)

    # ---- model and state --------------------------------------------------------------------------------------------
    graphdef, abstract_params = abstract_tokenizer(config)
    optimizer = make_optimizer(training, abstract_params)
    root_key, params_key, codebook_key = jax.random.split(jax.random.key(config.runtime.seed), 3)

    def create() -> TrainState:
        params = nnx.state(Tokenizer(config.tokenizer, rngs=nnx.Rngs(params_key)), nnx.Param)
        codebook = quantizers.init_codebook(config.tokenizer, codebook_key)
        return new_state(params, optimizer, ema=training.ema_decay > 0, statistics=codebook)

    state, shardings = create_sharded(create, mesh, config.runtime.fsdp_min_elements)
    parameters = telemetry.write_parameter_overview(state.params, directory / "parameters.txt")
    telemetry.say(f"{STAGE}: {parameters:,} parameters on {mesh.size} device(s)")

    # ---- step -------------------------------------------------------------------------------------------------------
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    jitted_fit = jax.jit(functools.partial(fit_start, graphdef=graphdef, batch_size=training.batch_size),
                         in_shardings=(shardings, batch, everywhere), out_shardings=shardings, donate_argnums=0)
    step = functools.partial(train_step, graphdef=graphdef, optimizer=optimizer, config=config.tokenizer)
    jitted_step = jax.jit(step, in_shardings=(shardings, batch, everywhere), out_shardings=(shardings, everywhere),
                          donate_argnums=0)
    jitted_validation = jax.jit(functools.partial(validation_step, graphdef=graphdef, config=config.tokenizer),
                                out_shardings=(everywhere, batch))

    def take_step(state: TrainState, rows: Mapping[str, np.ndarray], step: int) -> tuple[TrainState, dict[str, jax.Array]]:
        if step == 0:
            state = jitted_fit(state, first_clips(), codebook_key)
        return jitted_step(state, mesh_lib.put_batch(mesh, rows)["video"], root_key)

    def first_clips() -> jax.Array:
        number = fitting.clips_needed(config.tokenizer.codes, int(np.prod(config.grid)), training.batch_size)
        telemetry.say(f"{STAGE}: fitting the start to {number} clips")
        return mesh_lib.put_batch(mesh, next(pipeline.train_batches(clip_sources, config, number)))["video"]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        held_out = pipeline.validation_batches(clip_sources, config, training.batch_size, training.validation_batches)
        return validation(jitted_validation, state, held_out, mesh, directory / "pictures" / f"step_{step:08d}.png")

    # ---- loop -------------------------------------------------------------------------------------------------------
    meta = {"stage": STAGE, "config": config_lib.to_dict(config), "versions": checkpoints.versions()}
    state = loop.train(STAGE, directory, training, meta, state, batches, take_step=take_step, validate=validate,
                       best_by="loss")
    workdir_lib.mark_done(config, workdir, STAGE, step=training.steps,
                          tokenizer=tokenizer_hash(state.averaged, state.statistics))


def train_step(state: TrainState, video: jax.Array, root_key: jax.Array, *, graphdef: nnx.GraphDef,
               optimizer: optax.GradientTransformation, config: TokenizerConfig) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step and one codebook update on uint8 clips [B, F, H, W, 3]; returns the new state and its metrics."""
    key = jax.random.fold_in(root_key, state.step)
    training = config.training

    def loss_fn(params: nnx.State, piece: jax.Array, _: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        tokenizer = nnx.merge(graphdef, params)
        loss, output = losses.tokenizer_loss(tokenizer, state.statistics, clips.to_float(piece), config)
        return loss / training.accumulation, (output.features, output.codes, {"loss": loss, **output.metrics})

    gradients, (features, codes, metrics) = accumulated_gradients(loss_fn, state.params, video, training.accumulation)
    # The codebook sees the whole batch at once, so accumulation does not change its running counts.
    codebook = quantizers.update_codebook(state.statistics, join_pieces(features), join_pieces(codes), key,
                                          decay=config.codebook_decay, restart_threshold=config.restart_threshold)
    state = apply_gradients(state, gradients, optimizer, training.ema_decay).replace(statistics=codebook)
    metrics = {name: value.mean() for name, value in metrics.items()}
    return state, metrics | {"gradient_norm": optax.global_norm(gradients)}


def fit_start(state: TrainState, video: jax.Array, key: jax.Array, *, graphdef: nnx.GraphDef, batch_size: int) -> TrainState:
    """The state to begin with, fitted to uint8 clips [n, F, H, W, 3]: all codes are used from the start."""
    tokenizer, codebook = fitting.fit(nnx.merge(graphdef, state.params), state.statistics, clips.to_float(video), key,
                                      batch_size=batch_size)
    params = nnx.state(tokenizer, nnx.Param)
    return state.replace(params=params, ema=None if state.ema is None else params, statistics=codebook)


def validation_step(params: nnx.State, codebook: quantizers.Codebook, video: jax.Array, *, graphdef: nnx.GraphDef,
                    config: TokenizerConfig) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of a batch of uint8 clips [B, F, H, W, 3] and their reconstructions in the same form."""
    loss, output = losses.tokenizer_loss(nnx.merge(graphdef, params), codebook, clips.to_float(video), config)
    return {"loss": loss, **output.metrics}, clips.to_uint8(output.reconstruction)


def validation(jitted_validation: Callable[..., Any], state: TrainState, held_out: Iterable[Mapping[str, np.ndarray]],
               mesh: Mesh, picture: Path) -> dict[str, float]:
    """Means of the metrics over the held-out batches, with averaged weights; draws real and reconstructed clips."""
    collected: list[dict[str, jax.Array]] = []
    for rows in held_out:
        values, reconstruction = jitted_validation(state.averaged, state.statistics, mesh_lib.put_batch(mesh, rows)["video"])
        if not collected and jax.process_index() == 0:
            pictures.contact_sheet(picture, reconstruction_rows(rows["video"], mesh_lib.local_rows(reconstruction)))
        collected.append(values)
    if not collected:
        raise UserError("The validation split has fewer clips than one batch; lower config.tokenizer.training.batch_size or "
                        "raise config.data.validation_fraction or config.data.validation_clips.")
    fetched = jax.device_get(collected)
    return {name: float(np.mean([values[name] for values in fetched])) for name in fetched[0]}


def reconstruction_rows(video: np.ndarray, reconstruction: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Labelled rows for a contact sheet: each real clip above its reconstruction."""
    pairs = list(zip(video, reconstruction))[:PICTURED_CLIPS]
    return [row for i, (real, rebuilt) in enumerate(pairs) for row in ((f"real {i}", real), (f"reconstructed {i}", rebuilt))]


def abstract_tokenizer(config: Config) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameter shapes, without making any array."""
    return nnx.split(nnx.eval_shape(lambda: Tokenizer(config.tokenizer, rngs=nnx.Rngs(0))))


def load_tokenizer(config: Config, workdir: Path, mesh: Mesh) -> TrainedTokenizer:
    """The tokenizer of `config.tokenizer.checkpoint`, or else of the workdir: averaged weights where there are any.

    Raises:
        UserError: there is none, or it was trained with other sizes.
    """
    folder = checkpoints.find_checkpoints(Path(config.tokenizer.checkpoint or workdir), STAGE)
    theirs = checkpoints.read_meta(folder)["config"][STAGE]
    ours = config_lib.to_dict(config)[STAGE]
    for name in ("compression", "patch", "causal", "hidden", "quantizer", "codes", "code_width", "levels", "norm"):
        if theirs.setdefault(name, ours[name]) != ours[name]:  # an older one may not know the field yet
            raise UserError(f"The tokenizer in {folder} has {name} {theirs[name]}, but config.tokenizer.{name} is "
                            f"{ours[name]}; set it to {theirs[name]} or use another tokenizer.")
    graphdef, params = abstract_tokenizer(config)
    weights = "ema" if theirs["training"]["ema_decay"] > 0 else "params"
    codebook = jax.eval_shape(functools.partial(quantizers.init_codebook, config.tokenizer), jax.random.key(0))
    parts = mesh_lib.with_sharding({weights: params, "statistics": codebook}, mesh, config.runtime.fsdp_min_elements)
    found = checkpoints.read_arrays(folder, parts)
    return TrainedTokenizer(graphdef, found[weights], own_codes(nnx.merge(graphdef, found[weights]), found["statistics"]),
                            content_hash=tokenizer_hash(found[weights], found["statistics"]))
