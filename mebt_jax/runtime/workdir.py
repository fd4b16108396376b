"""The work directory of a run: whose it is, and which stages are done.

`<workdir>/config.json` is the config of the run, `<workdir>/<stage>/done.json` marks a finished
stage with a hash of everything its result depends on. All files are JSON and replaced in one
operation, so a kill leaves the old or the new one.
"""

import fnmatch
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints

STAGES = ("data", "tokenizer", "transformer", "sample", "evaluate")

# Fields that each stage adds to what its result depends on; it also depends on all stages before
# it.
_DEPENDS_ON = {
    "data": ("data.*",),
    "tokenizer": ("tokenizer.*", "runtime.seed"),
    "transformer": ("transformer.*", "masking.*"),
    "sample": ("sample.*",),
    "evaluate": ("evaluate.*",),
}
# Say where, how often or in how many pieces, not what: changing them changes no result beyond
# rounding.
_NO_RESULT = (
    "name",
    "mesh.*",
    "runtime.compilation_cache",
    "runtime.fsdp_min_elements",
    "runtime.profile",
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
# Change a result, but one that a run may well go on to: more steps continue the training, and what
# follows is redone.
_MAY_CHANGE = ("*.training.steps", "sample.*", "evaluate.*")


def claim(config: Config, workdir: Path) -> None:
    """Writes or checks `<workdir>/config.json`.

    Raises:
        UserError: the workdir belongs to a run with another config; names the fields.
    """
    path = workdir / "config.json"
    ours = config_lib.to_dict(config)
    # After a run that failed at once, another try with a mended config is welcome.
    if path.exists() and _has_results(workdir):
        theirs = read_json(path)
        differing = [
            name
            for name in _differing(_flat(theirs), _flat(ours))
            if not _matches(name, _NO_RESULT + _MAY_CHANGE)
        ]
        if differing:
            there, here = _flat(theirs), _flat(ours)
            listed = ", ".join(
                f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
                for name in differing[:5]
            )
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UserError(
                f"{workdir} holds a run of another config ({listed}{more}); give another "
                "--workdir, or remove "
                f"that one to start over."
            )
        if theirs == ours:
            return
    write_json(path, ours)


def is_done(config: Config, workdir: Path, stage: str) -> bool:
    """True if the stage finished with everything that its result depends on as it is now."""
    path = workdir / stage / "done.json"
    done = path.exists() and read_json(path)["config_hash"] == _stage_hash(config, stage)
    if (
        jax.process_count() > 1
    ):  # a slower process must not find done what a faster one has just finished, and skip it
        done = bool(multihost_utils.broadcast_one_to_all(np.bool_(done)))
    return done


def mark_done(config: Config, workdir: Path, stage: str, **facts: Any) -> None:
    """Writes `<workdir>/<stage>/done.json`; `facts` are plain JSON, such as the step reached."""
    record = {
        "config_hash": _stage_hash(config, stage),
        **facts,
        "versions": checkpoints.versions(),
    }
    write_json(workdir / stage / "done.json", record)


def require(config: Config, workdir: Path, stage: str) -> None:
    """Raises UserError if a stage before `stage` is missing or out of date; a tokenizer alone may
    be evaluated.
    """
    if stage == "evaluate" and tokenizer_alone(config, workdir):
        return
    missing = [name for name in STAGES[: STAGES.index(stage)] if not is_done(config, workdir, name)]
    if missing:
        raise UserError(
            f"The {stage} stage needs the {', '.join(missing)} stage{'s' * (len(missing) > 1)} "
            "first, not done "
            f"in {workdir}; run with --stage={missing[0]} or --stage=all."
        )


def tokenizer_alone(config: Config, workdir: Path) -> bool:
    """True if the tokenizer is trained and nothing behind it is, nor given."""
    return (
        is_done(config, workdir, "tokenizer")
        and not config.transformer.checkpoint
        and not (workdir / "transformer").exists()
    )


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one operation, by the first process of a run alone."""
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"Could not write {path} ({error.strerror}); free some space or choose another "
            "--workdir."
        ) from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"Could not read {path} ({error}); remove it if it is damaged.") from error


def _has_results(workdir: Path) -> bool:
    return any(
        (workdir / stage / name).exists()
        for stage in STAGES
        for name in ("done.json", "checkpoints")
    )


def _stage_hash(config: Config, stage: str) -> str:
    patterns = [
        pattern for name in STAGES[: STAGES.index(stage) + 1] for pattern in _DEPENDS_ON[name]
    ]
    fields = {
        name: value
        for name, value in _flat(config_lib.to_dict(config)).items()
        if _matches(name, patterns) and not _matches(name, _NO_RESULT)
    }
    return config_lib.content_hash(fields)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        fields |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return fields


def _differing(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [
        name
        for name in {**there, **here}
        if name not in there or name not in here or there[name] != here[name]
    ]


def _matches(name: str, patterns: Any) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
