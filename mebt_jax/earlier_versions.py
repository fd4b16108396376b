"""What earlier versions called by other names: config fields and values, files, and arrays.

Work directories, checkpoints and exported weights of these versions are read by way of the tables
below, and messages about an unknown field name the new one. A field that an earlier version did not
have means its default (`config.from_saved`).
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Dotted names: a field, or a whole group.
RENAMED = {
    "transformer.layers": "backbone.layers",
    "transformer.width": "backbone.width",
    "transformer.heads": "backbone.heads",
    "transformer.latents": "backbone.num_latents",
    "transformer.embedding_dropout": "backbone.embedding_dropout",
    "transformer.residual_dropout": "backbone.residual_dropout",
    "transformer.attention_dropout": "backbone.attention_dropout",
    "transformer.remat": "backbone.remat",
    "transformer.attention": "backbone.attention_implementation",
    "transformer.dtype": "backbone.dtype",
    "transformer.label_smoothing": "method.label_smoothing",
    "transformer.loss_block": "method.loss_block",
    "transformer.checkpoint": "prior.checkpoint",
    "transformer.training.accumulation": "prior.training.microbatches",
    "transformer.training.clip_norm": "prior.training.grad_clip_norm",
    "transformer.training": "prior.training",
    "masking.splits": "method.bucket_steps",
    "masking": "method",
    "tokenizer.codes": "tokenizer.codebook_size",
    "tokenizer.adversarial.clip_weight": "tokenizer.adversarial.video_weight",
    "tokenizer.training.accumulation": "tokenizer.training.microbatches",
    "tokenizer.training.clip_norm": "tokenizer.training.grad_clip_norm",
    **{
        f"sample.{name}": f"decoding.{name}"
        for name in (
            "preset",
            "order",
            "mask_schedule",
            "draft_steps",
            "choice_temperature",
            "temperature",
            "top_k",
            "top_p",
            "bootstrap_steps",
            "remask_steps",
            "remask_at",
            "remask_share",
            "revise_rounds",
            "revise_partitions",
            "revise_temperature",
        )
    },
}
# One field that has become several: its values, and what each means now.
SPLIT = {
    "transformer.flavour": {
        "paper": {
            "backbone.residual": "normed_query",
            "backbone.positions": "learned",
            "backbone.initialization": "normal",
        },
        "modern": {
            "backbone.residual": "query",
            "backbone.positions": "rotary",
            "backbone.initialization": "local",
        },
    }
}
# New name of a field -> old value -> new value.
VALUES = {
    "backbone.remat": {
        "block": "full",
        "asking": "save_query_projections",
        "dots": "dots_saveable",
    },
    "backbone.attention_implementation": {"kernel": "auto", "sums": "xla"},
    "method.interval_schedule": {
        "clip": "gaussian_clipped",
        "renormalized": "gaussian_renormalized",
    },
    "tokenizer.norm": {"token": "layer"},
}
# Stage -> its earlier name: of its folder in a work directory, and in what its checkpoints and the
# records of later stages say they are of.
STAGES = {"prior": "transformer"}


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of a saved config with the names and values of this version."""
    new: dict[str, Any] = {}
    for name, value in flat(values).items():
        if name in SPLIT:
            new |= SPLIT[name][value]
        else:
            name = _renamed(name)
            known = VALUES.get(name, {})
            new[name] = known.get(value, value) if isinstance(value, str) else value
    return nested(new)


def new_name(name: str) -> str:
    """What a field or a group of an earlier version is called now, in words and from "config"; ""
    if there was none of that name.

    Args:
        name: dotted, without "config".
    """
    if name in SPLIT:
        names = list(next(iter(SPLIT[name].values())))
    elif _renamed(name) != name:
        names = [_renamed(name)]
    else:  # a group whose fields have gone to several others
        inside = [new for old, new in RENAMED.items() if old.startswith(f"{name}.")]
        if name in {new.split(".")[0] for new in RENAMED.values()} or not inside:
            return ""
        names = sorted({new.split(".")[0] for new in inside})
    dotted = [f"config.{name}" for name in names]
    return " and ".join(filter(None, [", ".join(dotted[:-1]), dotted[-1]]))


def stage_folder(workdir: Path, stage: str) -> Path:
    """The folder of a stage in a work directory; a run of an earlier version goes on in its own."""
    folder, earlier = workdir / stage, workdir / STAGES.get(stage, stage)
    return earlier if earlier.exists() and not folder.exists() else folder


def stage_name(name: str) -> str:
    """The stage that a checkpoint says it is of."""
    return next((new for new, old in STAGES.items() if name == old), name)


def stage_hash(values: Mapping[str, Any], stage: str) -> str:
    """What the version before `depends_on` wrote as "config_hash" into the done.json of a stage.

    Args:
        values: the config.json of that version, as it is there.
        stage: its name in this version.
    """
    stages = list(_HASHED)
    end = stages.index(STAGES.get(stage, stage)) + 1
    patterns = [pattern for name in stages[:end] for pattern in _HASHED[name]]
    fields = {
        name: value
        for name, value in flat(values).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _NOT_HASHED)
    }
    return hashlib.sha256(json.dumps([fields], sort_keys=True).encode()).hexdigest()[:12]


_HASHED = {
    "data": ("data.*",),
    "tokenizer": ("tokenizer.*", "runtime.seed"),
    "transformer": ("transformer.*", "masking.*"),
    "sample": ("sample.*",),
    "evaluate": ("evaluate.*",),
}
_NOT_HASHED = (
    "data.workers",
    "data.prepared_dir",
    "data.tokens",
    "masking.splits",
    "transformer.loss_block",
    "transformer.remat",
    "transformer.attention",
    "*.training.accumulation",
    "*.training.log_every",
    "*.training.validate_every",
    "*.training.validation_batches",
    "*.training.checkpoint_every",
    "*.training.keep_every",
)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted names."""
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        *groups, last = name.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return tree


def _renamed(name: str) -> str:
    """The longest old name that `name` is or lies below decides."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        old = ".".join(parts[:end])
        if old in RENAMED:
            return ".".join([RENAMED[old], *parts[end:]])
    return name
