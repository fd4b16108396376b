"""Configuration: `ml_collections` at the edge, frozen dataclasses inside.

A file in `configs/` builds a ConfigDict that holds every field of `Config` (see `configs/base.py`,
which also says what each field means and its unit). `from_config_dict` turns it into the
dataclasses below once, at start-up; everything after that reads attributes of frozen dataclasses,
so a misspelt or ill-typed field can only fail here, by name.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mebt_jax.data.data_config import DATA_SOURCES, DataConfig, check_data
from mebt_jax.errors import UserError

BLOCK_KINDS = ("encode", "latent", "update", "decode", "full", "maskgit")
QUANTIZERS = ("ema", "gradient", "fsq", "lfq")
NORMS = ("group", "token", "batch")
ADVERSARIAL_LOSSES = ("hinge", "vanilla")
FLAVOURS = ("paper", "modern")
REMAT_POLICIES = ("none", "block", "asking", "dots")
ATTENTIONS = ("kernel", "sums")
DTYPES = ("float32", "bfloat16")
TASKS = ("generate", "predict", "interpolate", "fill", "extend", "edit")
FORMATS = ("mp4", "gif", "npz", "frames")
ORDERS = ("confidence", "random", "halton")
RATIO_SCHEDULES = (
    "linear",
    "cosine",
    "cosine_plus",
    "quadratic",
    "square",
    "cube",
    "sqrt",
    "convex",
)
INTERVAL_SCHEDULES = ("clip", "renormalized", "uniform", "longest")
LEARNING_RATE_DECAYS = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    warmup_steps: int
    decay: str
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    log_every: int
    validate_every: int
    validation_batches: int
    checkpoint_every: int
    keep_every: int


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    frame_weight: float
    clip_weight: float
    feature_weight: float
    loss: str
    channels: int
    layers: int
    learning_rate: float
    start: int
    warmup: int
    ramp: int
    share: float
    scale_limit: float
    lecam_weight: float

    @property
    def on(self) -> bool:
        return self.frame_weight > 0 or self.clip_weight > 0


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    compression: tuple[int, int, int]
    patch: tuple[int, int, int]
    causal: bool
    hidden: int
    quantizer: str
    codes: int
    code_width: int
    levels: tuple[int, ...]
    norm: str
    l1_weight: float
    l2_weight: float
    commitment_weight: float
    entropy_weight: float
    perceptual_weight: float
    lpips: str
    adversarial: AdversarialConfig
    codebook_decay: float
    restart_threshold: float
    dtype: str
    checkpoint: str
    training: TrainingConfig

    def frames(self, latents: int) -> int:
        """Frames of so many latent frames from the start of a clip."""
        return (
            1 + (latents - 1) * self.compression[0]
            if self.causal
            else latents * self.compression[0]
        )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    layers: tuple[str, ...]
    width: int
    heads: int
    latents: int
    flavour: str
    embedding_dropout: float
    residual_dropout: float
    attention_dropout: float
    label_smoothing: float
    loss_block: int
    remat: str
    attention: str
    dtype: str
    checkpoint: str
    training: TrainingConfig


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    ratio_schedule: str
    ratio_min: float
    ratio_max: float
    ratio_per_sample: bool
    target_budget: int
    interval_schedule: str
    interval_alpha: float
    interval_beta: float
    splits: int


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    task: str
    clips: int
    first_clip: int
    batch_size: int
    seed: int
    input: str
    given_frames: int
    given_last_frames: int
    mask: str
    region: tuple[int, int, int, int, int, int]
    frames: int
    overlap_frames: int
    preset: str
    order: str
    mask_schedule: str
    draft_steps: int
    choice_temperature: float
    temperature: float
    top_k: int
    top_p: float
    bootstrap_steps: int
    remask_steps: int
    remask_at: float
    remask_share: float
    revise_rounds: int
    revise_partitions: int
    revise_temperature: float
    formats: tuple[str, ...]
    frames_per_second: float


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    clips: int
    batch_size: int
    protocol: str
    i3d: str
    c3d: str
    lpips: str
    window: int
    window_every: int
    real: str
    fake: str
    resolution: int
    any_frame_rate: bool


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int
    fsdp: int
    sequence: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    seed: int
    compilation_cache: str
    fsdp_min_elements: int
    profile: bool


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    data: DataConfig
    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    masking: MaskingConfig
    sample: SampleConfig
    evaluate: EvaluateConfig
    mesh: MeshConfig
    runtime: RuntimeConfig

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W): the latent grid of one clip."""
        t, h, w = self.tokenizer.compression
        frames = self.data.frames - 1 + t if self.tokenizer.causal else self.data.frames
        return frames // t, self.data.resolution // h, self.data.resolution // w


def from_config_dict(values: ConfigDict | Mapping[str, Any]) -> Config:
    """Checks names, types and values and returns the frozen Config; raises UserError that names the
    field.
    """
    config = _build(
        Config, values.to_dict() if isinstance(values, ConfigDict) else values, path="config"
    )
    _check_values(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass, fit for JSON (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def content_hash(*parts: Any) -> str:
    """12 hex digits that change when any field of the given config dataclasses (or JSON values)
    changes.
    """
    plain = [to_dict(p) if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(
            f"{path} must be a group of fields, but is {values!r}; see configs/base.py."
        )
    fields = typing.get_type_hints(cls)
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, list(fields), n=1, cutoff=0.5)
            hint = (
                f"did you mean {path}.{near[0]}?"
                if near
                else f"its fields are {', '.join(fields)}."
            )
            raise UserError(f"Unknown config field {path}.{name}; {hint}")
    missing = [name for name in fields if name not in values]
    if missing:
        raise UserError(
            f"Config field {path}.{missing[0]} is missing; configs/base.py holds every field with "
            "its default."
        )
    return cls(
        **{name: _convert(kind, values[name], f"{path}.{name}") for name, kind in fields.items()}
    )


def _convert(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    if typing.get_origin(kind) is tuple:
        item_kinds = typing.get_args(kind)
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{path} must be a tuple, but is {value!r} ({type(value).__name__}).")
        if item_kinds[-1] is Ellipsis:
            item_kinds = (item_kinds[0],) * len(value)
        if len(item_kinds) != len(value):
            raise UserError(f"{path} must have {len(item_kinds)} entries, but is {tuple(value)!r}.")
        return tuple(
            _convert(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(item_kinds, value))
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        type(value) is not kind
    ):  # bool is a subclass of int: `isinstance` would let True stand for 1
        raise UserError(
            f"{path} must be of type {kind.__name__}, but is {value!r} ({type(value).__name__})."
        )
    return value


def _check_values(config: Config) -> None:
    choices = {
        "data.source": (config.data.source, DATA_SOURCES),
        "tokenizer.quantizer": (config.tokenizer.quantizer, QUANTIZERS),
        "tokenizer.norm": (config.tokenizer.norm, NORMS),
        "tokenizer.adversarial.loss": (config.tokenizer.adversarial.loss, ADVERSARIAL_LOSSES),
        "tokenizer.dtype": (config.tokenizer.dtype, DTYPES),
        "tokenizer.training.decay": (config.tokenizer.training.decay, LEARNING_RATE_DECAYS),
        "transformer.dtype": (config.transformer.dtype, DTYPES),
        "transformer.flavour": (config.transformer.flavour, FLAVOURS),
        "transformer.attention": (config.transformer.attention, ATTENTIONS),
        "transformer.remat": (config.transformer.remat, REMAT_POLICIES),
        "transformer.training.decay": (config.transformer.training.decay, LEARNING_RATE_DECAYS),
        "masking.ratio_schedule": (config.masking.ratio_schedule, RATIO_SCHEDULES),
        "masking.interval_schedule": (config.masking.interval_schedule, INTERVAL_SCHEDULES),
        "sample.mask_schedule": (config.sample.mask_schedule, RATIO_SCHEDULES),
        "sample.task": (config.sample.task, TASKS),
        "sample.order": (config.sample.order, ORDERS),
    }
    choices |= {
        f"data.mixture[{i}].source": (part.source, DATA_SOURCES)
        for i, part in enumerate(config.data.mixture)
    }
    choices |= {
        f"sample.formats[{i}]": (name, FORMATS) for i, name in enumerate(config.sample.formats)
    }
    choices |= {
        f"transformer.layers[{i}]": (kind, BLOCK_KINDS)
        for i, kind in enumerate(config.transformer.layers)
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"config.{name} is {value!r}, but must be one of {', '.join(allowed)}.")

    check_data(
        config.data, one_frame=config.tokenizer.causal or config.tokenizer.compression[0] == 1
    )
    t, h, w = config.tokenizer.compression
    sizes = [("resolution", config.data.resolution, h), ("resolution", config.data.resolution, w)]
    if config.tokenizer.causal:
        _check_causal(config)
    else:
        sizes.append(("frames", config.data.frames, t))
    for name, size, factor in sizes:
        if size < 1 or size % factor:
            raise UserError(
                f"config.data.{name} is {size}, which the tokenizer's compression of {factor} does "
                "not divide; "
                f"use a multiple of {factor} or change config.tokenizer.compression {(t, h, w)}."
            )
    for axis, (total, patch) in enumerate(
        zip(config.tokenizer.compression, config.tokenizer.patch)
    ):
        strides = total // patch if patch >= 1 else 0
        if patch < 1 or total % patch or strides & (strides - 1):
            raise UserError(
                f"config.tokenizer.patch is {config.tokenizer.patch}, but on axis {axis} the "
                f"compression {total} must "
                f"be the patch times a power of two."
            )
    _check_codes(config.tokenizer)
    adversarial = config.tokenizer.adversarial
    for name in (
        "frame_weight",
        "clip_weight",
        "feature_weight",
        "learning_rate",
        "ramp",
        "share",
        "scale_limit",
        "lecam_weight",
    ):
        if getattr(adversarial, name) < 0:
            raise UserError(
                f"config.tokenizer.adversarial.{name} is {getattr(adversarial, name)}, but must "
                "not be negative."
            )
    if not 0 <= adversarial.warmup <= adversarial.start:
        raise UserError(
            f"config.tokenizer.adversarial.warmup is {adversarial.warmup}, but the discriminators "
            "can only learn alone in "
            f"the 0 to {adversarial.start} steps before config.tokenizer.adversarial.start."
        )
    if config.transformer.width % config.transformer.heads:
        raise UserError(
            f"config.transformer.width is {config.transformer.width}, which "
            "config.transformer.heads "
            f"{config.transformer.heads} does not divide."
        )
    if (
        config.transformer.flavour == "modern"
        and config.transformer.width // config.transformer.heads < 6
    ):
        raise UserError(
            f"config.transformer.width is {config.transformer.width} for "
            f"{config.transformer.heads} heads, but the "
            "flavour 'modern' needs 6 channels a head, two for each axis; raise the width or "
            "lower the heads."
        )
    for name, training in (
        ("tokenizer", config.tokenizer.training),
        ("transformer", config.transformer.training),
    ):
        if (
            training.batch_size < 1
            or training.accumulation < 1
            or training.batch_size % training.accumulation
        ):
            raise UserError(
                f"config.{name}.training.batch_size is {training.batch_size}, which must be a "
                "positive multiple of "
                f"config.{name}.training.accumulation {training.accumulation}."
            )
    if not 0 <= config.sample.top_k <= config.tokenizer.codes or not 0 < config.sample.top_p <= 1:
        raise UserError(
            f"config.sample.top_k is {config.sample.top_k} and top_p is {config.sample.top_p}, but "
            "they must lie between 0 "
            f"and the {config.tokenizer.codes} codes, and above 0 and up to 1."
        )
    if not 0 <= config.data.jpeg_quality <= 100:
        raise UserError(
            f"config.data.jpeg_quality is {config.data.jpeg_quality}, but must lie between 1 and "
            "100, or be 0 to keep "
            f"the pixels as they are."
        )
    if (
        config.sample.remask_steps < 0
        or not 0 < config.sample.remask_at < 1
        or not 0 < config.sample.remask_share < 1
    ):
        raise UserError(
            f"config.sample.remask_steps is {config.sample.remask_steps}, remask_at "
            f"{config.sample.remask_at} and "
            f"remask_share {config.sample.remask_share}, but the first must not be negative and "
            "the others must "
            f"lie between 0 and 1."
        )
    positive = {
        "data.frame_stride": config.data.frame_stride,
        "data.train_clips": config.data.train_clips,
        "data.validation_clips": config.data.validation_clips,
        "data.record_frames": config.data.record_frames,
        "sample.clips": config.sample.clips,
        "sample.batch_size": config.sample.batch_size,
        "sample.draft_steps": config.sample.draft_steps,
        "sample.revise_partitions": config.sample.revise_partitions,
        "evaluate.window": config.evaluate.window,
        "evaluate.window_every": config.evaluate.window_every,
        "evaluate.clips": config.evaluate.clips,
        "evaluate.batch_size": config.evaluate.batch_size,
        "masking.splits": config.masking.splits,
        "transformer.loss_block": config.transformer.loss_block,
        "tokenizer.training.steps": config.tokenizer.training.steps,
        "tokenizer.adversarial.channels": adversarial.channels,
        "tokenizer.adversarial.layers": adversarial.layers,
    }
    # A transformer that is given may be used as it is.
    if not (config.transformer.checkpoint and config.transformer.training.steps == 0):
        positive["transformer.training.steps"] = config.transformer.training.steps
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"config.{name} is {value}, but must be at least 1.")


def _check_causal(config: Config) -> None:
    """No norm and no stored token of a causal tokenizer may depend on later frames or on the place
    in the clip.
    """
    step, frames = config.tokenizer.compression[0], config.data.frames
    if frames < 1 or (frames - 1) % step:
        near = max(0, round((frames - 1) / step)) * step + 1
        raise UserError(
            f"config.data.frames is {frames}, but a causal tokenizer of temporal compression "
            f"{step} takes one frame more "
            f"than a multiple of {step}; use {near}."
        )
    if config.tokenizer.norm != "token":
        raise UserError(
            f"config.tokenizer.norm is {config.tokenizer.norm!r}, whose statistics reach over time "
            "or are stored, but "
            f"config.tokenizer.causal needs one that sees no later frame; set it to 'token'."
        )
    if config.data.tokens:
        raise UserError(
            "config.data.tokens stores the codes of long runs of frames, but the first token of a "
            "causal clip stands for "
            "one frame alone; set config.data.tokens or config.tokenizer.causal to False."
        )


def _check_codes(tokenizer: TokenizerConfig) -> None:
    """The quantizers without a search have as many codes as their features have combinations of
    values.
    """
    codes, width, levels = tokenizer.codes, tokenizer.code_width, tokenizer.levels
    if tokenizer.quantizer == "fsq" and (
        math.prod(levels) != codes or len(levels) != width or min(levels, default=0) < 2
    ):
        raise UserError(
            f"config.tokenizer.levels is {levels}, but the quantizer 'fsq' needs "
            f"config.tokenizer.code_width, {width}, "
            f"levels of at least 2 whose product is config.tokenizer.codes, {codes}."
        )
    if tokenizer.quantizer == "lfq" and codes != 2**width:
        raise UserError(
            f"config.tokenizer.codes is {codes}, but the quantizer 'lfq' has 2 to the power of "
            f"config.tokenizer.code_width codes, here {2**width}; set one to fit the other."
        )
