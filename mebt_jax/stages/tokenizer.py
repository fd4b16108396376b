"""Second stage: trains the tokenizer on clips, and loads a trained one for the stages after it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data import clips, pipeline, sources
from mebt_jax.errors import UserError
from mebt_jax.interop import weight_folders
from mebt_jax.runtime import checkpoints, host_arrays, loop, pictures, telemetry
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.compilation import low_memory_compiler_options
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import (
    Scale,
    TrainState,
    accumulate,
    accumulated_gradients,
    apply_gradients,
    create_sharded,
    join_microbatches,
    new_state,
)
from mebt_jax.tokenizer import earlier_tokenizers
from mebt_jax.tokenizer.autoencoder import Tokenizer, tokenizer_hash
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig
from mebt_jax.tokenizer.trained_tokenizer import abstract_tokenizer, load_tokenizer
from mebt_jax.tokenizer.training import adversarial, losses, pca_init, training_alerts
from mebt_jax.tokenizer.training.lpips import LPIPS

STAGE = "tokenizer"
PICTURED_CLIPS = 4


def run(config: Config, workdir: Path) -> None:
    """Trains to `config.tokenizer.training.steps`, from the last checkpoint of the workdir if there
    is one.

    Raises:
        UserError: the mesh, the batch size or a checkpoint do not fit, the loss is not finite, or
            the disk is full.
        SystemExit: 143 after SIGTERM, when everything is saved.
    """
    directory = workdir / STAGE

    # ---- mesh ------------------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    training = config.tokenizer.training
    mesh_lib.check_batch_size(
        mesh, training.batch_size // training.microbatches, "config.tokenizer.training.batch_size"
    )
    if config.tokenizer.checkpoint:
        trained = load_tokenizer(config, workdir, mesh)
        telemetry.say(
            f"{STAGE}: {trained.content_hash} of {config.tokenizer.checkpoint} is used, nothing to "
            "train"
        )
        workdir_lib.mark_done(config, workdir, STAGE, tokenizer=trained.content_hash)
        return

    # ---- data ------------------------------------------------------------------------------------
    clip_sources = sources.open_sources(config, workdir, images=True)
    share = host_arrays.host_shard(mesh)
    batches = pipeline.train_batches(clip_sources, config, training.batch_size, share)

    # ---- model and state -------------------------------------------------------------------------
    parts = training_parts(config)
    perceptual = load_perceptual(config, mesh)
    root_key, params_key, codebook_key = jax.random.split(jax.random.key(config.runtime.seed), 3)
    state, shardings = create_sharded(
        functools.partial(create_state, config, parts, params_key, codebook_key),
        mesh,
        config.runtime.fsdp_min_elements,
    )
    parameters = telemetry.write_parameter_overview(state.params, directory / "parameters.txt")
    telemetry.say(f"{STAGE}: {parameters:,} parameters on {mesh.size} device(s)")

    # ---- step ------------------------------------------------------------------------------------
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    fit = functools.partial(fit_start, graphdef=parts.graphdef, batch_size=training.batch_size)
    jitted_fit = mesh_lib.jit(
        mesh,
        fit,
        in_shardings=(shardings, batch, everywhere),
        out_shardings=shardings,
        donate_argnums=0,
    )
    jitted_steps = step_programs(config, parts, shardings, mesh)
    in_training = functools.partial(
        validation_step, graphdef=parts.graphdef, config=config.tokenizer
    )
    jitted_validation = mesh_lib.jit(mesh, in_training, out_shardings=(everywhere, batch))
    adversarial_config = config.tokenizer.adversarial
    first_disc_step = (
        adversarial_config.start - adversarial_config.warmup
        if adversarial_config.on
        else training.steps
    )

    def take_step(
        state: TrainState, rows: Mapping[str, np.ndarray], step: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if step == 0:
            state = jitted_fit(state, first_clips(), codebook_key)
        video = host_arrays.put_batch(mesh, rows)["video"]
        return jitted_steps[step >= first_disc_step](state, video, root_key, perceptual)

    def first_clips() -> jax.Array:
        number = pca_init.clips_needed(
            config.tokenizer.codebook_size,
            int(np.prod(config.grid)),
            training.batch_size,
            has_shortcut=config.tokenizer.patch != (1, 1, 1),
        )
        telemetry.say(f"{STAGE}: fitting the start to {number} clips")
        videos = dataclasses.replace(clip_sources, images=None)
        return host_arrays.put_batch(
            mesh, next(pipeline.train_batches(videos, config, number, share))
        )["video"]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        held_out = pipeline.validation_batches(
            clip_sources, config, training.batch_size, training.validation_batches, share
        )
        return validation(
            functools.partial(jitted_validation, perceptual=perceptual),
            state,
            held_out,
            mesh,
            directory / "pictures" / f"step_{step:08d}.png",
        )

    alert_state = training_alerts.AlertState()

    def warn(record: Mapping[str, float]) -> list[str]:
        nonlocal alert_state
        alert_state, sentences = training_alerts.check(
            alert_state, record, config.tokenizer, training.batch_size * int(np.prod(config.grid))
        )
        return sentences

    # ---- loop ------------------------------------------------------------------------------------
    meta = {
        "stage": STAGE,
        "layout": earlier_tokenizers.LAYOUT,
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
        best_by="loss",
        keep_steps=[adversarial_config.start] if adversarial_config.on else [],
        warn=warn,
        profile=config.runtime.profile,
        earlier_path=earlier_tokenizers.earlier_path,
    )
    workdir_lib.mark_done(
        config,
        workdir,
        STAGE,
        step=training.steps,
        tokenizer=tokenizer_hash(nnx.merge_state(state.averaged, state.model_state)),
    )


@dataclasses.dataclass(frozen=True)
class TrainingParts:
    """What a step needs besides arrays; the last two are None without discriminators."""

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    disc_graphdef: nnx.GraphDef | None
    disc_optimizer: optax.GradientTransformation | None


def training_parts(config: Config) -> TrainingParts:
    graphdef, abstract_params, _ = abstract_tokenizer(config)
    training, adversarial_config = config.tokenizer.training, config.tokenizer.adversarial
    on = adversarial_config.on
    return TrainingParts(
        graphdef,
        make_optimizer(training, abstract_params),
        adversarial.discriminators_graph(adversarial_config) if on else None,
        adversarial.make_discriminator_optimizer(adversarial_config, training.grad_clip_norm)
        if on
        else None,
    )


def create_state(
    config: Config, parts: TrainingParts, params_key: jax.Array, codebook_key: jax.Array
) -> TrainState:
    """The state before `fit_start`; for use under jit."""
    rngs = nnx.Rngs(params=params_key, codebook=codebook_key)
    _, params, model_state = nnx.split(Tokenizer(config.tokenizer, rngs=rngs), nnx.Param, ...)
    disc_state = None
    if parts.disc_optimizer is not None:
        disc_state = adversarial.new_disc_state(
            config.tokenizer.adversarial, parts.disc_optimizer, jax.random.fold_in(params_key, 1)
        )
    return new_state(
        params,
        parts.optimizer,
        ema=config.tokenizer.training.ema_decay > 0,
        model_state=model_state,
        disc_state=disc_state,
    )


def step_programs(
    config: Config, parts: TrainingParts, shardings: Any, mesh: Mesh
) -> dict[bool, jax.stages.Wrapped]:
    """The jitted `train_step` by `with_discriminators`: two programs, so that steps without
    discriminators do not pay for them.
    """
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    step = functools.partial(train_step, parts=parts, config=config.tokenizer)
    return {
        with_discriminators: mesh_lib.jit(
            mesh,
            functools.partial(step, with_discriminators=with_discriminators),
            donate_argnums=0,
            in_shardings=(shardings, batch, everywhere, everywhere),
            out_shardings=(shardings, everywhere),
            compiler_options=low_memory_compiler_options(mesh.devices.flat[0].platform),
        )
        for with_discriminators in (False, True)
    }


def train_step(
    state: TrainState,
    video: jax.Array,
    root_key: jax.Array,
    perceptual: nnx.State | None = None,
    *,
    parts: TrainingParts,
    config: TokenizerConfig,
    with_discriminators: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step and one codebook update on uint8 clips [B, F, H, W, 3]; returns the new
    state and its metrics.

    Args:
        perceptual: weights of LPIPS, or None to go without.
        with_discriminators: the tokenizer is updated against the discriminators, then they are
            updated on reconstructions of the updated tokenizer.

    Note: the official program updates the codebook, and the statistics of BatchNorms, in both
    halves and in every microbatch; here it is once a step.
    """
    training = config.training
    restart_key = jax.random.fold_in(root_key, state.step)
    frame_key, disc_frame_key = jax.random.split(jax.random.fold_in(restart_key, 1))
    lpips = None if perceptual is None else nnx.merge(abstract_lpips()[0], perceptual)
    discriminators = None
    if with_discriminators:
        disc = state.disc_state
        discriminators = functools.partial(
            nnx.merge, parts.disc_graphdef, disc.params, disc.batch_stats, copy=True
        )
    ramp_weight = adversarial.ramp(config.adversarial, state.step)

    def gradient_fn(
        params: nnx.State, microbatch: tuple[jax.Array, jax.Array], _: Any, scale: Scale
    ) -> tuple[nnx.State, dict[str, jax.Array], tuple[Any, ...]]:
        clips_uint8, frame = microbatch
        gradients, loss, output = adversarial.tokenizer_gradients(
            parts.graphdef,
            params,
            state.model_state,
            clips.to_float(clips_uint8),
            frame,
            config,
            lpips,
            discriminators,
            ramp_weight,
        )
        metrics = {"loss": loss, **output.metrics}
        aux = (output.features, output.tokens, output.batch_stats)
        return jax.tree.map(scale, gradients), metrics, aux

    gradients, metrics, (features, tokens, batch_stats) = accumulate(
        gradient_fn, state.params, (video, random_frames(video, frame_key)), training.microbatches
    )
    metrics["gradient_norm"] = optax.global_norm(gradients)
    state = apply_gradients(state, gradients, parts.optimizer, training.ema_decay)
    # The codebook sees the whole batch at once, so accumulation does not change its running counts.
    tokenizer = nnx.merge(parts.graphdef, state.params, state.model_state, copy=True)
    tokenizer.quantizer.update(join_microbatches(features), join_microbatches(tokens), restart_key)
    nnx.update(tokenizer, jax.tree.map(lambda x: x.mean(axis=0), batch_stats))
    state = state.replace(model_state=nnx.split(tokenizer, nnx.Param, ...)[2])
    if with_discriminators:
        disc_state, disc_metrics = discriminator_step(
            state, video, random_frames(video, disc_frame_key), parts, config
        )
        state, metrics = state.replace(disc_state=disc_state), metrics | disc_metrics
    return state, metrics


def discriminator_step(
    state: TrainState,
    video: jax.Array,
    frame: jax.Array,
    parts: TrainingParts,
    config: TokenizerConfig,
) -> tuple[adversarial.DiscState, dict[str, jax.Array]]:
    """One optimizer step of the discriminators on uint8 clips [B, F, H, W, 3] and the tokenizer's
    reconstructions of them.
    """
    disc_state = state.disc_state

    def loss_fn(
        params: nnx.State, microbatch: tuple[jax.Array, jax.Array], _: Any
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], adversarial.DiscPass]]:
        # Copies: BatchNorms may only write to variables of the function that they run in.
        discriminators = nnx.merge(parts.disc_graphdef, params, disc_state.batch_stats, copy=True)
        tokenizer = nnx.merge(parts.graphdef, state.params, state.model_state, copy=True)
        tokenizer.train()
        real = clips.to_float(microbatch[0])
        _, output = losses.reconstruct(tokenizer, real)
        loss, disc_pass = adversarial.discriminator_loss(
            discriminators,
            output.reconstruction,
            real,
            microbatch[1],
            disc_state.mean_logits,
            config.adversarial,
        )
        return loss, (disc_pass.metrics, disc_pass)

    gradients, metrics, passes = accumulated_gradients(
        loss_fn, disc_state.params, (video, frame), config.training.microbatches
    )
    disc_pass = jax.tree.map(lambda x: x.mean(axis=0), passes)
    disc_state = adversarial.updated_disc_state(
        disc_state, gradients, disc_pass, parts.disc_optimizer
    )
    return disc_state, metrics | {"discriminator_gradient_norm": optax.global_norm(gradients)}


def random_frames(video: jax.Array, key: jax.Array) -> jax.Array:
    """int [B]: a random frame of each clip [B, F, H, W, 3], for networks that see single frames
    (mebt/vqgan.py:104).
    """
    return jax.random.randint(key, video.shape[:1], 0, video.shape[1])


def fit_start(
    state: TrainState, video: jax.Array, key: jax.Array, *, graphdef: nnx.GraphDef, batch_size: int
) -> TrainState:
    """The state after `pca_init.fit` to uint8 clips [n, F, H, W, 3], with which training starts."""
    tokenizer = nnx.merge(graphdef, state.params, state.model_state)
    tokenizer.train()
    pca_init.fit(tokenizer, clips.to_float(video), key, batch_size=batch_size)
    _, params, model_state = nnx.split(tokenizer, nnx.Param, ...)
    return state.replace(
        params=params, ema=None if state.ema is None else params, model_state=model_state
    )


def validation_step(
    params: nnx.State,
    model_state: nnx.State,
    video: jax.Array,
    perceptual: nnx.State | None = None,
    *,
    graphdef: nnx.GraphDef,
    config: TokenizerConfig,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of a batch of uint8 clips [B, F, H, W, 3] and their reconstructions in the same
    form.
    """
    lpips = None if perceptual is None else nnx.merge(abstract_lpips()[0], perceptual)
    # LPIPS compares the same frames in every validation.
    middle = jnp.full(video.shape[:1], video.shape[1] // 2)
    tokenizer = nnx.merge(graphdef, params, model_state)
    loss, output = losses.tokenizer_loss(tokenizer, clips.to_float(video), config, lpips, middle)
    return {"loss": loss, **output.metrics}, clips.to_uint8(output.reconstruction)


def validation(
    jitted_validation: Callable[..., Any],
    state: TrainState,
    held_out: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    picture: Path,
) -> dict[str, float]:
    """Means of the metrics over the held-out batches, with averaged weights; draws real and
    reconstructed clips.
    """
    collected: list[dict[str, jax.Array]] = []
    for rows in held_out:
        values, reconstruction = jitted_validation(
            state.averaged, state.model_state, host_arrays.put_batch(mesh, rows)["video"]
        )
        if not collected and jax.process_index() == 0:
            pairs = list(zip(rows["video"], host_arrays.local_rows(reconstruction)))
            pictures.contact_sheet(picture, pictures.pair_rows(pairs[:PICTURED_CLIPS]))
        collected.append(values)
    if not collected:
        raise UserError(
            "The validation split has fewer clips than one batch; lower "
            "config.tokenizer.training.batch_size or "
            "raise config.data.validation_fraction or config.data.validation_clips."
        )
    fetched = jax.device_get(collected)
    return {name: float(np.mean([values[name] for values in fetched])) for name in fetched[0]}


def abstract_lpips() -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and shapes of the weights of LPIPS."""
    return nnx.split(nnx.eval_shape(lambda: LPIPS(rngs=nnx.Rngs(0))))


def load_perceptual(config: Config, mesh: Mesh) -> nnx.State | None:
    """Weights of LPIPS on every device, or None if the config goes without.

    Raises:
        UserError: they are needed and not there.
    """
    tokenizer = config.tokenizer
    if tokenizer.perceptual_weight == 0:
        return None
    if not tokenizer.lpips:
        raise UserError(
            f"config.tokenizer.perceptual_weight is {tokenizer.perceptual_weight}, but the weights "
            "of LPIPS are not "
            "here: fetch `lpips` and `vgg16` with mebt_jax.interop.fetch, convert them "
            "(docs/evaluation.md) and pass "
            "--config.tokenizer.lpips=DIR, or train without them by "
            "--config.tokenizer.perceptual_weight=0."
        )
    return jax.device_put(
        weight_folders.load_network(Path(tokenizer.lpips), "lpips")[1], mesh_lib.replicated(mesh)
    )
