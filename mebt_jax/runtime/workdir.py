"""The work directory of a run: its config, and which stages are done.

`<workdir>/config.json` is the config of the run, `<workdir>/<stage>/done.json` marks a finished
stage with every field that its result depends on. All files are JSON and replaced in one operation,
so a kill leaves the old or the new one.
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
from mebt_jax import earlier_versions
from mebt_jax.config import Config
from mebt_jax.config_fields import Rule, walk
from mebt_jax.earlier_versions import flat, nested
from mebt_jax.errors import UserError
from mebt_jax.runtime import checkpoints

STAGES = ("data", "tokenizer", "prior", "sample", "evaluate")

# Fields that each stage adds to what its result depends on; it also depends on all stages before
# it. Fields marked no_result are left out.
_DEPENDS_ON = {
    "data": ("data.*",),
    "tokenizer": ("tokenizer.*", "runtime.seed"),
    "prior": ("backbone.*", "method.*", "prior.*"),
    "sample": ("sample.*", "decoding.*"),
    "evaluate": ("evaluate.*",),
}


def stage_folder(workdir: Path, stage: str) -> Path:
    """Where a stage of this run keeps its files."""
    return earlier_versions.stage_folder(workdir, stage)


def claim(config: Config, workdir: Path) -> None:
    """Writes or checks `<workdir>/config.json`; brings that of an earlier version to this form.

    Raises:
        UserError: the workdir belongs to a run with another config; names the fields.
    """
    path = workdir / "config.json"
    ours = config_lib.to_dict(config)
    if path.exists():
        saved = read_json(path)
        # After a run that failed at once, another try with a corrected config is welcome.
        if _has_results(workdir):
            theirs = config_lib.from_saved(saved, path)
            _refuse_other_config(config, theirs, workdir)
            _keep_done_stages(saved, theirs, workdir)
        if saved == ours:
            return
    write_json(path, ours)


def _refuse_other_config(config: Config, theirs: Config, workdir: Path) -> None:
    here, there = flat(config_lib.to_dict(config)), flat(config_lib.to_dict(theirs))
    rules = _rules(theirs) | _rules(config)
    differing = [
        name
        for name in {**there, **here}
        if (name not in there or name not in here or there[name] != here[name])
        and not (rules[name].no_result or rules[name].may_change)
    ]
    if differing:
        listed = ", ".join(
            f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
            for name in differing[:5]
        )
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{workdir} holds a run of another config ({listed}{more}); give another --workdir, or "
            "remove that one to start over."
        )


def _keep_done_stages(saved: dict[str, Any], theirs: Config, workdir: Path) -> None:
    """Writes the fields into the done.json of stages that an earlier version finished with the
    config in the workdir; it wrote only a hash of them there.
    """
    for stage in STAGES:
        path = stage_folder(workdir, stage) / "done.json"
        record = read_json(path) if path.exists() else {"depends_on": None}
        if "depends_on" not in record and record["config_hash"] == earlier_versions.stage_hash(
            saved, stage
        ):
            write_json(path, {"depends_on": _depends_on(theirs, stage), **record})


def is_done(config: Config, workdir: Path, stage: str) -> bool:
    """True if the stage finished with everything that its result depends on as it is now."""
    path = stage_folder(workdir, stage) / "done.json"
    fields = read_json(path).get("depends_on") if path.exists() else None
    done = False
    if fields is not None:
        theirs = config_lib.from_saved(nested(fields), path)
        done = _depends_on(theirs, stage) == _depends_on(config, stage)
    # A slower process must not find done what a faster one has just finished, and skip it.
    if jax.process_count() > 1:
        done = bool(multihost_utils.broadcast_one_to_all(np.bool_(done)))
    return done


def mark_done(config: Config, workdir: Path, stage: str, **facts: Any) -> None:
    """Writes the done.json of a stage; `facts` are plain JSON, such as the step reached."""
    record = {
        "depends_on": _depends_on(config, stage),
        **facts,
        "versions": checkpoints.versions(),
    }
    write_json(stage_folder(workdir, stage) / "done.json", record)


def generated_folder(workdir: Path) -> Path:
    """Where the clips, tokens and manifest are that the sample stage finished last."""
    folder = stage_folder(workdir, "sample")
    return folder / read_json(folder / "done.json").get("folder", "")


def require(config: Config, workdir: Path, stage: str) -> None:
    """Raises UserError if a stage before `stage` is missing or out of date, except that a
    tokenizer may be evaluated without the stages after it.
    """
    if stage == "evaluate" and tokenizer_alone(config, workdir):
        return
    missing = [name for name in STAGES[: STAGES.index(stage)] if not is_done(config, workdir, name)]
    if missing:
        raise UserError(
            f"The {stage} stage needs the {', '.join(missing)} stage{'s' * (len(missing) > 1)} "
            f"first, not done in {workdir}; run with --stage={missing[0]} or --stage=all."
        )


def tokenizer_alone(config: Config, workdir: Path) -> bool:
    """True if the tokenizer is trained, and there is no prior, neither trained nor given."""
    return (
        is_done(config, workdir, "tokenizer")
        and not config.prior.checkpoint
        and not stage_folder(workdir, "prior").exists()
    )


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one operation; only the first process of a run writes."""
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
        (stage_folder(workdir, stage) / name).exists()
        for stage in STAGES
        for name in ("done.json", "checkpoints")
    )


def _depends_on(config: Config, stage: str) -> dict[str, Any]:
    """The fields, by dotted name, that the result of a stage depends on."""
    patterns = [
        pattern for name in STAGES[: STAGES.index(stage) + 1] for pattern in _DEPENDS_ON[name]
    ]
    rules = _rules(config)
    return {
        name: value
        for name, value in flat(config_lib.to_dict(config)).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        and not rules[name].no_result
    }


def _rules(config: Config) -> dict[str, Rule]:
    return {name.removeprefix("config."): rule for name, rule, _ in walk(config, "config")}
