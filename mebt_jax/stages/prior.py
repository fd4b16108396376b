"""Third stage: trains MeBT on the codes of a frozen tokenizer, and loads a trained one for the
stages after it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.backbones.mebt.initialization import start_locally
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import Config, TransformerConfig
from mebt_jax.data import clips, pipeline, sources, token_cache
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import decode, plan
from mebt_jax.methods.masked.loss import clip_scores, masked_cross_entropy
from mebt_jax.methods.masked.masking import MaskDraw, Split, draw_masking, split_tokens
from mebt_jax.methods.masked.shape_buckets import StepShape, all_shapes
from mebt_jax.runtime import checkpoints, loop, pictures, telemetry
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.compilation import frugal_options
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import (
    TrainState,
    accumulated_gradients,
    apply_gradients,
    create_sharded,
    new_state,
)
from mebt_jax.stages.tokenizer import TrainedTokenizer, load_tokenizer
from mebt_jax.tokenizer import autoencoder

STAGE = "transformer"
VALIDATION_RATIOS = 4  # mask ratios at which each validation batch is predicted
PICTURED_CLIPS = 2
PICTURED_RATIO = 0.5


@dataclasses.dataclass(frozen=True)
class TrainedTransformer:
    """A frozen transformer, the step of its checkpoint, and which of its weights these are."""

    graphdef: nnx.GraphDef
    params: nnx.State
    step: int
    weights: str = "averaged"  # or "plain", where training kept no averages


def run(config: Config, workdir: Path) -> None:
    """Trains to `config.transformer.training.steps`, from the last checkpoint of the workdir if
    there is one.

    With 0 steps the transformer of `config.transformer.checkpoint` is used as it is.

    Raises:
        UserError: the mesh, the batch size, the tokenizer or a checkpoint do not fit, the loss is
            not finite, or the disk is full.
        SystemExit: 143 after SIGTERM, when everything is saved.
    """
    directory = workdir / STAGE

    # ---- mesh ------------------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_heads(mesh, config.transformer.heads)
    training = config.transformer.training
    mesh_lib.check_batch_size(
        mesh, training.batch_size // training.accumulation, "config.transformer.training.batch_size"
    )
    if training.steps == 0:
        found = load_transformer(
            config, workdir, mesh, load_tokenizer(config, workdir, mesh).content_hash
        )
        weights = checkpoints.content_hash(found.params)
        telemetry.say(
            f"{STAGE}: {weights} of {config.transformer.checkpoint} is used, nothing to train"
        )
        workdir_lib.mark_done(config, workdir, STAGE, weights=weights)
        return

    # ---- data and frozen tokenizer ---------------------------------------------------------------
    tokenizer = load_tokenizer(config, workdir, mesh)
    encoder = TokenizerOnMesh(tokenizer, mesh)
    clip_sources = sources.open_sources(config, workdir)
    if config.data.tokens:
        clip_sources = token_cache.prepare(
            config, workdir, clip_sources, tokenizer.content_hash, encoder.codes_on_host
        )
    share = mesh_lib.host_share(mesh)
    batches = pipeline.train_batches(clip_sources, config, training.batch_size, share)

    # ---- model and state -------------------------------------------------------------------------
    graphdef, abstract_params = abstract_transformer(config)
    optimizer = make_optimizer(training, abstract_params)
    root_key, params_key = jax.random.split(jax.random.key(config.runtime.seed))

    def create() -> TrainState:
        params = nnx.state(
            new_transformer(config, params_key, tokenizer.codebook.embeddings), nnx.Param
        )
        return new_state(params, optimizer, ema=training.ema_decay > 0)

    state, shardings = create_sharded(create, mesh, config.runtime.fsdp_min_elements)
    state = start_weights(config, state, mesh, tokenizer.content_hash)
    refuse_other_tokenizer(directory / "checkpoints", tokenizer.content_hash)
    parameters = telemetry.write_parameter_overview(state.params, directory / "parameters.txt")
    telemetry.say(
        f"{STAGE}: {parameters:,} parameters on {mesh.size} device(s), {np.prod(config.grid)} "
        "tokens a clip"
    )

    # ---- step ------------------------------------------------------------------------------------
    step_of = step_programs(config, graphdef, optimizer, shardings, mesh)

    def take_step(
        state: TrainState, rows: Mapping[str, np.ndarray], step: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        codes = encoder.codes_of(rows)  # [B, T, H, W]
        draw = draw_masking(
            config.masking, config.grid, training.batch_size, config.runtime.seed, step
        )
        return step_of(draw.shape)(state, codes, *place(draw, mesh), root_key)

    # ---- validation ------------------------------------------------------------------------------
    held_out = pipeline.validation_batches(
        clip_sources, config, training.batch_size, training.validation_batches, share
    )
    held_out_codes = [encoder.codes_of(rows) for rows in held_out]
    in_training = functools.partial(validation_step, graphdef=graphdef, config=config.transformer)
    jitted_validation = jax.jit(
        mesh_lib.on_mesh(mesh, in_training),
        static_argnames="shape",
        out_shardings=mesh_lib.replicated(mesh),
    )

    def validate(state: TrainState, step: int) -> dict[str, float]:
        picture = directory / "pictures" / f"step_{step:08d}.png"
        draw_pictures(config, graphdef, state.averaged, encoder, held_out_codes[0], picture)
        values = validation(jitted_validation, state.averaged, held_out_codes, config, mesh)
        return {name: float(of_clips.mean()) for name, of_clips in values.items()}

    # ---- loop ------------------------------------------------------------------------------------
    meta = {
        "stage": STAGE,
        "tokenizer": tokenizer.content_hash,
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
        best_by="nll",
        profile=config.runtime.profile,
    )
    workdir_lib.mark_done(
        config,
        workdir,
        STAGE,
        step=training.steps,
        tokenizer=tokenizer.content_hash,
        weights=checkpoints.content_hash(state.averaged),
        compiled_steps=step_of.cache_info().misses,
    )


def step_programs(
    config: Config,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    shardings: Any,
    mesh: Mesh,
) -> Callable[[StepShape], Callable[..., tuple[TrainState, dict[str, jax.Array]]]]:
    """StepShape -> jitted `train_step` of these array sizes, made once each; at most as many as
    `all_shapes` lists.
    """
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    possible = all_shapes(config.masking, config.grid)

    @functools.cache
    def step_of(shape: StepShape) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        if shape not in possible:
            raise ValueError(f"{shape} is not among the shapes of masking.capacities.all_shapes")
        telemetry.say(
            f"{STAGE}: compiling program {step_of.cache_info().misses} of at most {len(possible)}, "
            f"{shape}"
        )
        step = functools.partial(
            train_step,
            graphdef=graphdef,
            optimizer=optimizer,
            config=config.transformer,
            shape=shape,
        )
        return jax.jit(
            mesh_lib.on_mesh(mesh, step),
            in_shardings=(shardings, batch, everywhere, batch, batch, everywhere),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
            compiler_options=frugal_options(mesh.devices.flat[0].platform),
        )

    return step_of


def train_step(
    state: TrainState,
    codes: jax.Array,
    interval: jax.Array,
    num_context: jax.Array,
    num_targets: jax.Array,
    root_key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: TransformerConfig,
    shape: StepShape,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on codes [B, T, H, W]; `interval` [], `num_context`, `num_targets` [B] are
    those of a MaskDraw.
    """
    split_key, dropout_key = jax.random.split(jax.random.fold_in(root_key, state.step))
    split = split_tokens(split_key, codes, interval, num_context, num_targets, shape=shape)
    total = split.target_valid.sum()

    def loss_fn(params: nnx.State, piece: Split, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, params)
        key = jax.random.fold_in(dropout_key, index) if uses_dropout(config) else None
        output = predict(model, piece, config, key)
        share = (
            piece.target_valid.sum() / total
        )  # the mean over the batch weights each piece by its targets
        return output.loss * share, jnp.stack([output.loss, output.nll, output.accuracy]) * share

    gradients, sums = accumulated_gradients(
        loss_fn, state.params, split, config.training.accumulation
    )
    state = apply_gradients(state, gradients, optimizer, config.training.ema_decay)
    loss, nll, accuracy = sums.sum(axis=0)
    return state, {
        "loss": loss,
        "nll": nll,
        "accuracy": accuracy,
        "gradient_norm": optax.global_norm(gradients),
        "interval": interval.astype(jnp.float32),
    }


def validation_step(
    params: nnx.State,
    codes: jax.Array,
    interval: jax.Array,
    num_context: jax.Array,
    num_targets: jax.Array,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    config: TransformerConfig,
    shape: StepShape,
) -> dict[str, jax.Array]:
    """Metrics [B] of predicting the targets of one draw in codes [B, T, H, W]."""
    split = split_tokens(key, codes, interval, num_context, num_targets, shape=shape)
    model = nnx.merge(graphdef, params)
    hidden = model(
        split.context_codes,
        split.context_positions,
        split.context_valid,
        split.target_positions,
        split.target_valid,
        key=None,
    )  # [B, M, D]
    nll, accuracy = clip_scores(
        model, hidden, split.target_codes, split.target_valid, block=config.loss_block
    )
    return {"nll": nll, "accuracy": accuracy}


def predict(model: MeBT, split: Split, config: TransformerConfig, key: jax.Array | None) -> Any:
    """LossOutput of predicting the targets of `split` from its context."""
    hidden = model(
        split.context_codes,
        split.context_positions,
        split.context_valid,
        split.target_positions,
        split.target_valid,
        key=key,
    )  # [B, M, D]
    return masked_cross_entropy(
        model,
        hidden,
        split.target_codes,
        split.target_valid,
        block=config.loss_block,
        label_smoothing=config.label_smoothing,
    )


def uses_dropout(config: TransformerConfig) -> bool:
    return max(config.embedding_dropout, config.residual_dropout, config.attention_dropout) > 0


def place(draw: MaskDraw, mesh: Mesh) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The numbers of a draw on the mesh: interval [], num_context [B], num_targets [B]."""
    interval = jax.device_put(np.int32(draw.interval), mesh_lib.replicated(mesh))
    return interval, *mesh_lib.put_rows(mesh, draw.num_context, draw.num_targets)


# ---- validation ----------------------------------------------------------------------------------


def validation(
    jitted_validation: Callable[..., dict[str, jax.Array]],
    params: nnx.State,
    held_out_codes: Sequence[jax.Array],
    config: Config,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """ "nll" (nats per token) and "accuracy" of each clip, float32 [n], its mean over fixed draws.

    The mask ratios are spread evenly over the schedule, and every ratio counts alike, as in
    training. Every call makes the same draws, so that the numbers of different steps compare.
    """
    draws = [
        (codes, (i + (b + 0.5) / len(held_out_codes)) / VALIDATION_RATIOS)
        for b, codes in enumerate(held_out_codes)
        for i in range(VALIDATION_RATIOS)
    ]
    collected = []
    for number, (codes, u) in enumerate(draws):
        draw = draw_at(config, len(codes), u)
        key = jax.random.fold_in(jax.random.key(config.runtime.seed), number)
        collected.append(
            jitted_validation(params, codes, *place(draw, mesh), key, shape=draw.shape)
        )
    fetched = jax.device_get(collected)
    clips_by_draw = {
        name: np.stack([values[name] for values in fetched]) for name in fetched[0]
    }  # [batches * ratios, B]
    return {
        name: values.reshape(-1, VALIDATION_RATIOS, values.shape[-1]).mean(axis=1).ravel()
        for name, values in clips_by_draw.items()
    }


def draw_at(config: Config, batch_size: int, u: float) -> MaskDraw:
    """Sizes for whole clips at one place u in [0, 1] of the range of mask ratios."""
    masking = config.masking
    at = masking.ratio_min + u * (masking.ratio_max - masking.ratio_min)
    fixed = dataclasses.replace(
        masking, interval_schedule="longest", ratio_min=at, ratio_max=at, ratio_per_sample=False
    )
    return draw_masking(fixed, config.grid, batch_size, seed=0, step=0)


def draw_pictures(
    config: Config,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    encoder: "TokenizerOnMesh",
    codes: jax.Array,
    path: Path,
) -> None:
    """Contact sheet: clips rebuilt from their codes, the same with half of the codes predicted, and
    generated clips.
    """
    sharding = mesh_lib.batch_sharding(encoder.mesh)
    tokens = int(np.prod(config.grid))
    known = np.random.default_rng(config.runtime.seed).permutation(tokens) < int(
        (1 - PICTURED_RATIO) * tokens
    )  # [N]
    known, indices = mesh_lib.put_rows(
        encoder.mesh,
        np.broadcast_to(known.reshape(config.grid), codes.shape),
        np.arange(len(codes), dtype=np.int32),
    )
    keys = jax.jit(decode.clip_keys, static_argnums=0, out_shardings=sharding)(
        config.sample.seed, indices
    )
    # A look, not the sample stage: without the passes that polish.
    settings = dataclasses.replace(config.sample, bootstrap_steps=0, revise_rounds=0)
    shown = {"tokenizer": codes}
    for name, given in (("half predicted", {"codes": codes, "known": known}), ("generated", {})):
        steps = plan.build_plan(
            settings, tokens, num_known=int((1 - PICTURED_RATIO) * tokens) if given else 0
        )
        shown[name] = decode.decode(
            graphdef, params, steps, config.grid, keys, sharding=sharding, **given
        ).codes
    videos = {name: mesh_lib.local_rows(encoder.video(chosen)) for name, chosen in shown.items()}
    if jax.process_index() == 0:
        rows = [
            (f"{name} {i}", video[i])
            for i in range(PICTURED_CLIPS)
            for name, video in videos.items()
            if i < len(video)
        ]
        pictures.contact_sheet(path, rows)


class TokenizerOnMesh:
    """A frozen tokenizer compiled for batches split over a mesh: uint8 clips to codes and back."""

    def __init__(self, tokenizer: TrainedTokenizer, mesh: Mesh) -> None:
        self.mesh = mesh
        self._weights = (tokenizer.params, tokenizer.codebook)
        batch = mesh_lib.batch_sharding(mesh)
        self._encode, self._decode = (
            jax.jit(
                mesh_lib.on_mesh(mesh, functools.partial(program, graphdef=tokenizer.graphdef)),
                out_shardings=batch,
            )
            for program in (encode_clips, decode_clips)
        )

    def codes(self, video: np.ndarray) -> jax.Array:
        """This process's uint8 clips [b, F, H, W, 3] -> codes of the global batch, int32 [B, T, H,
        W].
        """
        return self._encode(
            *self._weights, mesh_lib.put_batch(self.mesh, {"video": video})["video"]
        )

    def codes_of(self, rows: Mapping[str, np.ndarray]) -> jax.Array:
        """This process's rows of a batch of the pipeline, clips or their codes -> codes of the
        global batch [B, T, H, W].
        """
        return (
            mesh_lib.put_batch(self.mesh, rows)["codes"]
            if "codes" in rows
            else self.codes(rows["video"])
        )

    def codes_on_host(self, video: np.ndarray) -> np.ndarray:
        """uint8 clips [B, F, H, W, 3] that every process holds whole -> their codes, the same on
        every process.
        """
        return mesh_lib.on_host(
            self.codes(video[mesh_lib.host_rows(self.mesh, len(video))]), self.mesh
        )

    def video(self, codes: jax.Array) -> jax.Array:
        """Codes [B, T, H, W] -> uint8 clips [B, F, H, W, 3]."""
        return self._decode(*self._weights, codes)


def encode_clips(
    params: nnx.State, codebook: Any, video: jax.Array, *, graphdef: nnx.GraphDef
) -> jax.Array:
    return autoencoder.encode_to_codes(nnx.merge(graphdef, params), codebook, clips.to_float(video))


def decode_clips(
    params: nnx.State, codebook: Any, codes: jax.Array, *, graphdef: nnx.GraphDef
) -> jax.Array:
    return clips.to_uint8(autoencoder.decode_codes(nnx.merge(graphdef, params), codebook, codes))


# ---- trained transformers ------------------------------------------------------------------------


def new_transformer(config: Config, key: jax.Array, codebook: jax.Array) -> MeBT:
    """A model at its starting values; `codebook` [V, E] are the embeddings of the codes it is to
    predict.
    """
    model = MeBT(
        config.transformer, num_codes=config.tokenizer.codes, grid=config.grid, rngs=nnx.Rngs(key)
    )
    if config.transformer.flavour == "modern":
        start_locally(model, codebook, jax.random.fold_in(key, 1))
    return model


def abstract_transformer(config: Config) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameter shapes, without making any array."""
    return nnx.split(
        nnx.eval_shape(
            lambda: MeBT(
                config.transformer,
                num_codes=config.tokenizer.codes,
                grid=config.grid,
                rngs=nnx.Rngs(0),
            )
        ),
        nnx.Param,
    )


def load_transformer(
    config: Config, workdir: Path, mesh: Mesh, tokenizer_hash: str
) -> TrainedTransformer:
    """The transformer of the workdir, or of `config.transformer.checkpoint` where it is used as it
    is.

    Args:
        workdir: a workdir, its transformer folder, or a folder of checkpoints.
        tokenizer_hash: `TrainedTokenizer.content_hash` of the tokenizer to decode with.

    Raises:
        UserError: there is none, it has other layers or sizes, or it was trained on the codes of
            another tokenizer.

    Returns:
        Averaged weights where there are any.
    """
    as_it_is = config.transformer.training.steps == 0
    folder = checkpoints.find_checkpoints(
        Path(config.transformer.checkpoint) if as_it_is else workdir, STAGE
    )
    refuse_other_tokenizer(folder, tokenizer_hash)
    meta = checkpoints.read_meta(folder)
    theirs, ours = meta["config"][STAGE], config_lib.to_dict(config)[STAGE]
    for name in (
        "layers",
        "width",
        "heads",
        "latents",
        "flavour",
    ):  # heads and kinds of layers do not show in the shapes
        if theirs[name] != ours[name]:
            raise UserError(
                f"The transformer in {folder} has {name} {theirs[name]}, but "
                f"config.transformer.{name} is "
                f"{ours[name]}; set it to {theirs[name]} or use another transformer."
            )
    graphdef, params = abstract_transformer(config)
    weights = "ema" if meta["config"][STAGE]["training"]["ema_decay"] > 0 else "params"
    parts = mesh_lib.with_sharding({weights: params}, mesh, config.runtime.fsdp_min_elements)
    return TrainedTransformer(
        graphdef,
        checkpoints.read_arrays(folder, parts)[weights],
        step=meta["step"],
        weights="averaged" if weights == "ema" else "plain",
    )


def refuse_other_tokenizer(folder: Path, tokenizer_hash: str) -> None:
    """Raises UserError if the latest checkpoint in `folder`, if any, was trained on the codes of
    another tokenizer.
    """
    if checkpoints.has_checkpoint(folder):
        trained_on = checkpoints.read_meta(folder)["tokenizer"]
        if trained_on is None:  # converted without its tokenizer
            telemetry.say(
                f"{STAGE}: {folder} does not name its tokenizer; that it is {tokenizer_hash} "
                "cannot be checked"
            )
        elif trained_on != tokenizer_hash:
            raise UserError(
                f"The transformer in {folder} was trained on the codes of tokenizer {trained_on}, "
                "but the "
                f"tokenizer here is {tokenizer_hash}, whose codes mean other things; use that "
                "tokenizer, or "
                f"remove {folder.parent} to train a transformer for this one."
            )


def start_weights(config: Config, state: TrainState, mesh: Mesh, tokenizer_hash: str) -> TrainState:
    """`state` with the weights of `config.transformer.checkpoint` in place of random ones, if it is
    set.
    """
    if not config.transformer.checkpoint:
        return state
    found = load_transformer(config, Path(config.transformer.checkpoint), mesh, tokenizer_hash)
    telemetry.say(
        f"{STAGE}: starting from the weights of step {found.step} in "
        f"{config.transformer.checkpoint}"
    )
    return state.replace(
        params=found.params, ema=None if state.ema is None else jax.tree.map(jnp.copy, found.params)
    )
