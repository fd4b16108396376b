"""Second stage: trains the 3D VQ tokenizer on clips, and loads a trained one for the stages after
it.
"""

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
from mebt_jax.config import Config, TokenizerConfig
from mebt_jax.data import clips, pipeline, sources
from mebt_jax.errors import UserError
from mebt_jax.interop import weight_folders
from mebt_jax.runtime import checkpoints, loop, pictures, telemetry
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.compilation import frugal_options
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import (
    TrainState,
    accumulated,
    accumulated_gradients,
    apply_gradients,
    create_sharded,
    join_pieces,
    new_state,
)
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer, own_codes, tokenizer_hash
from mebt_jax.tokenizer.training import adversarial, losses, pca_init, training_alerts
from mebt_jax.tokenizer.training.lpips import LPIPS

STAGE = "tokenizer"
PICTURED_CLIPS = 4


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """A frozen tokenizer; `content_hash` names its weights and codes, whatever folder they came
    from.
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    codebook: quantizers.Codebook
    content_hash: str


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
        mesh, training.batch_size // training.accumulation, "config.tokenizer.training.batch_size"
    )
    if config.tokenizer.checkpoint:
        found = load_tokenizer(config, workdir, mesh)
        telemetry.say(
            f"{STAGE}: {found.content_hash} of {config.tokenizer.checkpoint} is used, nothing to "
            "train"
        )
        workdir_lib.mark_done(config, workdir, STAGE, tokenizer=found.content_hash)
        return

    # ---- data ------------------------------------------------------------------------------------
    clip_sources = sources.open_sources(config, workdir, images=True)
    share = mesh_lib.host_share(mesh)
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
    on_mesh = functools.partial(mesh_lib.on_mesh, mesh)
    fit = functools.partial(fit_start, graphdef=parts.graphdef, batch_size=training.batch_size)
    jitted_fit = jax.jit(
        on_mesh(fit),
        in_shardings=(shardings, batch, everywhere),
        out_shardings=shardings,
        donate_argnums=0,
    )
    jitted_steps = step_programs(config, parts, shardings, mesh)
    in_training = functools.partial(
        validation_step, graphdef=parts.graphdef, config=config.tokenizer
    )
    jitted_validation = jax.jit(on_mesh(in_training), out_shardings=(everywhere, batch))
    adversarial_config = config.tokenizer.adversarial
    first_opposed = (
        adversarial_config.start - adversarial_config.warmup
        if adversarial_config.on
        else training.steps
    )

    def take_step(
        state: TrainState, rows: Mapping[str, np.ndarray], step: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if step == 0:
            state = jitted_fit(state, first_clips(), codebook_key)
        video = mesh_lib.put_batch(mesh, rows)["video"]
        return jitted_steps[step >= first_opposed](state, video, root_key, perceptual)

    def first_clips() -> jax.Array:
        number = pca_init.clips_needed(
            config.tokenizer.codes,
            int(np.prod(config.grid)),
            training.batch_size,
            folded=config.tokenizer.patch != (1, 1, 1),
        )
        telemetry.say(f"{STAGE}: fitting the start to {number} clips")
        videos = dataclasses.replace(clip_sources, images=None)
        return mesh_lib.put_batch(
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

    watching = training_alerts.Watch()

    def warn(record: Mapping[str, float]) -> list[str]:
        nonlocal watching
        watching, sentences = training_alerts.look(
            watching, record, config.tokenizer, training.batch_size * int(np.prod(config.grid))
        )
        return sentences

    # ---- loop ------------------------------------------------------------------------------------
    meta = {
        "stage": STAGE,
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
    )
    workdir_lib.mark_done(
        config,
        workdir,
        STAGE,
        step=training.steps,
        tokenizer=tokenizer_hash(state.averaged, state.statistics),
    )


@dataclasses.dataclass(frozen=True)
class TrainingParts:
    """What a step needs besides arrays; the last two are None without discriminators."""

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    opponents: nnx.GraphDef | None
    opponents_optimizer: optax.GradientTransformation | None


def training_parts(config: Config) -> TrainingParts:
    graphdef, abstract_params = abstract_tokenizer(config)
    training, opponents = config.tokenizer.training, config.tokenizer.adversarial
    return TrainingParts(
        graphdef,
        make_optimizer(training, abstract_params),
        adversarial.discriminators_graph(opponents) if opponents.on else None,
        adversarial.make_discriminator_optimizer(opponents, training.clip_norm)
        if opponents.on
        else None,
    )


def create_state(
    config: Config, parts: TrainingParts, params_key: jax.Array, codebook_key: jax.Array
) -> TrainState:
    """The state before `fit_start`; for use under jit."""
    params = nnx.state(Tokenizer(config.tokenizer, rngs=nnx.Rngs(params_key)))
    codebook = quantizers.init_codebook(config.tokenizer, codebook_key)
    opponents = None
    if parts.opponents is not None:
        opponents = adversarial.new_adversary(
            config.tokenizer.adversarial,
            parts.opponents_optimizer,
            jax.random.fold_in(params_key, 1),
        )
    return new_state(
        params,
        parts.optimizer,
        ema=config.tokenizer.training.ema_decay > 0,
        statistics=codebook,
        adversary=opponents,
    )


def step_programs(
    config: Config, parts: TrainingParts, shardings: Any, mesh: Mesh
) -> dict[bool, jax.stages.Wrapped]:
    """The jitted `train_step` without discriminators and with them: two, so that steps before these
    do not pay for them.
    """
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    step = functools.partial(train_step, parts=parts, config=config.tokenizer)
    return {
        opposed: jax.jit(
            mesh_lib.on_mesh(mesh, functools.partial(step, opposed=opposed)),
            donate_argnums=0,
            in_shardings=(shardings, batch, everywhere, everywhere),
            out_shardings=(shardings, everywhere),
            compiler_options=frugal_options(mesh.devices.flat[0].platform),
        )
        for opposed in (False, True)
    }


def train_step(
    state: TrainState,
    video: jax.Array,
    root_key: jax.Array,
    perceptual: nnx.State | None = None,
    *,
    parts: TrainingParts,
    config: TokenizerConfig,
    opposed: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step and one codebook update on uint8 clips [B, F, H, W, 3]; returns the new
    state and its metrics.

    Args:
        perceptual: weights of LPIPS, or None to go without.
        opposed: the discriminators take part: the tokenizer moves against them, then they move
            against the moved tokenizer.

    Note: the official program updates the codebook, and the statistics of BatchNorms, in both
    halves and in every accumulated piece; here it is once a step.
    """
    training = config.training
    codes_key = jax.random.fold_in(root_key, state.step)
    frame_key, other_frame_key = jax.random.split(jax.random.fold_in(codes_key, 1))
    lpips = None if perceptual is None else nnx.merge(lpips_graph(), perceptual)
    opponents = (
        nnx.merge(parts.opponents, state.adversary.params, state.adversary.statistics)
        if opposed
        else None
    )
    ramped = adversarial.ramp(config.adversarial, state.step)

    def gradient(
        params: nnx.State, piece: tuple[jax.Array, jax.Array], _: Any
    ) -> tuple[nnx.State, tuple[Any, ...]]:
        gradients, loss, output = adversarial.tokenizer_gradients(
            parts.graphdef,
            params,
            state.statistics,
            clips.to_float(piece[0]),
            piece[1],
            config,
            lpips,
            opponents,
            ramped,
        )
        gradients = jax.tree.map(lambda g: g / training.accumulation, gradients)
        return gradients, (
            output.features,
            output.codes,
            output.statistics,
            {"loss": loss, **output.metrics},
        )

    gradients, (features, codes, statistics, metrics) = accumulated(
        gradient, state.params, (video, random_frames(video, frame_key)), training.accumulation
    )
    # The codebook sees the whole batch at once, so accumulation does not change its running counts.
    codebook = quantizers.update_codebook(
        state.statistics,
        join_pieces(features),
        join_pieces(codes),
        codes_key,
        decay=config.codebook_decay,
        restart_threshold=config.restart_threshold,
    )
    state = apply_gradients(state, gradients, parts.optimizer, training.ema_decay).replace(
        statistics=codebook
    )
    state = with_norm_statistics(state, jax.tree.map(lambda x: x.mean(axis=0), statistics))
    metrics = {name: value.mean() for name, value in metrics.items()} | {
        "gradient_norm": optax.global_norm(gradients)
    }
    if opposed:
        adversary, verdict = discriminator_step(
            state, video, random_frames(video, other_frame_key), parts, config
        )
        state, metrics = state.replace(adversary=adversary), metrics | verdict
    return state, metrics


def discriminator_step(
    state: TrainState,
    video: jax.Array,
    frame: jax.Array,
    parts: TrainingParts,
    config: TokenizerConfig,
) -> tuple[adversarial.Adversary, dict[str, jax.Array]]:
    """One optimizer step of the discriminators on uint8 clips [B, F, H, W, 3] and what the
    tokenizer makes of them.
    """
    adversary, pieces = state.adversary, config.training.accumulation

    def loss_fn(
        params: nnx.State, piece: tuple[jax.Array, jax.Array], _: Any
    ) -> tuple[jax.Array, adversarial.Verdict]:
        judges = nnx.merge(parts.opponents, params, adversary.statistics)
        real = clips.to_float(piece[0])
        tokenizer = nnx.merge(
            parts.graphdef, state.params, copy=True
        )  # its norms may only be written to where they were made
        tokenizer.train()
        _, output = losses.code_loss(tokenizer, state.statistics, real, config)
        loss, verdict = adversarial.discriminator_loss(
            judges, output.reconstruction, real, piece[1], adversary.logits, config.adversarial
        )
        return loss / pieces, verdict

    gradients, verdicts = accumulated_gradients(loss_fn, adversary.params, (video, frame), pieces)
    verdict = jax.tree.map(lambda x: x.mean(axis=0), verdicts)
    adversary = adversarial.updated_adversary(
        adversary, gradients, verdict, parts.opponents_optimizer
    )
    return adversary, verdict.metrics | {
        "discriminator_gradient_norm": optax.global_norm(gradients)
    }


def with_norm_statistics(state: TrainState, statistics: nnx.State) -> TrainState:
    """`state` with these statistics of BatchNorms in the weights and in their averages; they lie
    among the parameters.
    """
    weights = (
        {"params": state.params}
        if state.ema is None
        else {"params": state.params, "ema": state.ema}
    )
    return state.replace(
        **{name: nnx.merge_state(tree, statistics) for name, tree in weights.items()}
    )


def random_frames(video: jax.Array, key: jax.Array) -> jax.Array:
    """int [B]: one frame of each clip [B, F, H, W, 3], for what looks at frames
    (mebt/vqgan.py:104).
    """
    return jax.random.randint(key, video.shape[:1], 0, video.shape[1])


def fit_start(
    state: TrainState, video: jax.Array, key: jax.Array, *, graphdef: nnx.GraphDef, batch_size: int
) -> TrainState:
    """The state to begin with, fitted to uint8 clips [n, F, H, W, 3]: all codes are used from the
    start.
    """
    tokenizer = nnx.merge(graphdef, state.params)
    tokenizer.train()
    tokenizer, codebook = pca_init.fit(
        tokenizer, state.statistics, clips.to_float(video), key, batch_size=batch_size
    )
    params = nnx.state(tokenizer)
    return state.replace(
        params=params, ema=None if state.ema is None else params, statistics=codebook
    )


def validation_step(
    params: nnx.State,
    codebook: quantizers.Codebook,
    video: jax.Array,
    perceptual: nnx.State | None = None,
    *,
    graphdef: nnx.GraphDef,
    config: TokenizerConfig,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of a batch of uint8 clips [B, F, H, W, 3] and their reconstructions in the same
    form.
    """
    lpips = None if perceptual is None else nnx.merge(lpips_graph(), perceptual)
    middle = jnp.full(
        video.shape[:1], video.shape[1] // 2
    )  # LPIPS looks at the same frames in every validation
    loss, output = losses.tokenizer_loss(
        nnx.merge(graphdef, params), codebook, clips.to_float(video), config, lpips, middle
    )
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
            state.averaged, state.statistics, mesh_lib.put_batch(mesh, rows)["video"]
        )
        if not collected and jax.process_index() == 0:
            pictures.contact_sheet(
                picture, reconstruction_rows(rows["video"], mesh_lib.local_rows(reconstruction))
            )
        collected.append(values)
    if not collected:
        raise UserError(
            "The validation split has fewer clips than one batch; lower "
            "config.tokenizer.training.batch_size or "
            "raise config.data.validation_fraction or config.data.validation_clips."
        )
    fetched = jax.device_get(collected)
    return {name: float(np.mean([values[name] for values in fetched])) for name in fetched[0]}


def reconstruction_rows(
    video: np.ndarray, reconstruction: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Labelled rows for a contact sheet: each real clip above its reconstruction."""
    pairs = list(zip(video, reconstruction))[:PICTURED_CLIPS]
    return [
        row
        for i, (real, rebuilt) in enumerate(pairs)
        for row in ((f"real {i}", real), (f"reconstructed {i}", rebuilt))
    ]


def abstract_tokenizer(config: Config) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameter shapes, without making any array."""
    return nnx.split(nnx.eval_shape(lambda: Tokenizer(config.tokenizer, rngs=nnx.Rngs(0))))


def lpips_graph() -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: LPIPS(rngs=nnx.Rngs(0))))[0]


def abstract_perceptual() -> nnx.State:
    """Shapes of the weights of LPIPS."""
    return nnx.split(nnx.eval_shape(lambda: LPIPS(rngs=nnx.Rngs(0))))[1]


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


def load_tokenizer(config: Config, workdir: Path, mesh: Mesh) -> TrainedTokenizer:
    """The tokenizer of `config.tokenizer.checkpoint`, or else of the workdir: averaged weights
    where there are any.

    Raises:
        UserError: there is none, or it was trained with other sizes.
    """
    folder = checkpoints.find_checkpoints(Path(config.tokenizer.checkpoint or workdir), STAGE)
    theirs = checkpoints.read_meta(folder)["config"][STAGE]
    ours = config_lib.to_dict(config)[STAGE]
    for name in (
        "compression",
        "patch",
        "causal",
        "hidden",
        "quantizer",
        "codes",
        "code_width",
        "levels",
        "norm",
    ):
        if (
            theirs.setdefault(name, ours[name]) != ours[name]
        ):  # an older one may not know the field yet
            raise UserError(
                f"The tokenizer in {folder} has {name} {theirs[name]}, but config.tokenizer.{name} "
                "is "
                f"{ours[name]}; set it to {theirs[name]} or use another tokenizer."
            )
    graphdef, params = abstract_tokenizer(config)
    weights = "ema" if theirs["training"]["ema_decay"] > 0 else "params"
    codebook = jax.eval_shape(
        functools.partial(quantizers.init_codebook, config.tokenizer), jax.random.key(0)
    )
    parts = mesh_lib.with_sharding(
        {weights: params, "statistics": codebook}, mesh, config.runtime.fsdp_min_elements
    )
    found = checkpoints.read_arrays(folder, parts)
    return TrainedTokenizer(
        graphdef,
        found[weights],
        own_codes(nnx.merge(graphdef, found[weights]), found["statistics"]),
        content_hash=tokenizer_hash(found[weights], found["statistics"]),
    )
