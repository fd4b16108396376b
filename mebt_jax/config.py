"""The configuration of a run: `ml_collections` at the edge, frozen dataclasses inside.

Every field stands once, with its default, doc and allowed values, on a frozen dataclass in the
package that uses it (`*_config.py`; `config_fields.field`). This file composes them. A config file
starts from `default_config()`, a ConfigDict of all fields at their defaults, and changes what
differs; `from_config_dict` turns it into the dataclasses once, at start-up. Everything after that
reads attributes of frozen dataclasses, so a misspelt or ill-typed field can only fail here, by
name. `python -m mebt_jax.main --config=FILE --help_fields` prints all fields.
"""

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mebt_jax import earlier_versions
from mebt_jax.config_fields import field, lazy_field, walk
from mebt_jax.data.data_config import DataConfig
from mebt_jax.errors import UserError
from mebt_jax.metrics.evaluate_config import EvaluateConfig
from mebt_jax.runtime.runtime_config import MeshConfig, RuntimeConfig, TrainingConfig
from mebt_jax.tasks.sample_config import SampleConfig
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The second stage, which trains the backbone by the method."""

    checkpoint: str = field(
        "",
        "Workdir, checkpoint folder, or folder of the converter with a trained prior to start "
        "from; with training.steps = 0 it is used as it is.",
    )
    conditions: tuple[str, ...] = field(
        (),
        "What the prior is told of a clip beside its tokens, of those that its records have; the "
        "backbone must take them.",
        one_of="mebt_jax.data.conditions:NAMES",
        fits_weights=True,
    )
    training: TrainingConfig = field(TrainingConfig(steps=2_000_000), "Its training loop.")

    def check(self, config: "Config", path: str) -> None:
        # A prior that is given may be used as it is.
        least = 0 if self.checkpoint else 1
        if self.training.steps < least:
            raise UserError(
                f"{path}.training.steps is {self.training.steps}, but must be at least {least}."
            )


def _default_kind(group: str) -> Any:
    return _kind_class(group, {}).Config()


@dataclasses.dataclass(frozen=True)
class Config:
    """All fields of a run. The dataclass of `backbone` is that of its kind, those of `method` and
    `decoding` are those of the method's kind (`backbones.BACKBONES`, `methods.METHODS`).

    The defaults are the paper's 128-frame model (Table 2, Appendix A.1) with the official program's
    optimizer; see docs/architecture.md for where the two differ.
    """

    name: str = field("base", "Names the default work directory, runs/<name>.", no_result=True)
    data: DataConfig = field(DataConfig(), "Where clips come from, and their size.")
    tokenizer: TokenizerConfig = field(TokenizerConfig(), "First stage: the tokenizer.")
    backbone: Any = lazy_field(
        lambda: _default_kind("backbone"),
        "Second stage: the network; the other fields depend on its kind.",
    )
    method: Any = lazy_field(
        lambda: _default_kind("method"),
        "Second stage: what the network learns; the other fields depend on its kind.",
    )
    decoding: Any = lazy_field(
        lambda: _kind_class("method", {}).Decoding(),
        "How the method draws clips.",
        may_change=True,
    )
    prior: PriorConfig = field(PriorConfig(), "Second stage: its training.")
    sample: SampleConfig = field(SampleConfig(), "What is drawn, and written.", may_change=True)
    evaluate: EvaluateConfig = field(EvaluateConfig(), "What is measured.", may_change=True)
    mesh: MeshConfig = field(
        MeshConfig(),
        "Devices along each axis; -1 on one axis means all that are left.",
        no_result=True,
    )
    runtime: RuntimeConfig = field(RuntimeConfig(), "What holds for the whole run.")

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W): the latent grid of one clip."""
        t, h, w = self.tokenizer.compression
        frames = self.data.frames - 1 + t if self.tokenizer.causal else self.data.frames
        return frames // t, self.data.resolution // h, self.data.resolution // w


# ---- config files --------------------------------------------------------------------------------


def default_config() -> ConfigDict:
    """Every field at its default, for a config file to change."""
    return ConfigDict(dataclasses.asdict(Config()))


def config_beside(file: str, name: str) -> ConfigDict:
    """The config of another file in the folder of a config file.

    Args:
        file: `__file__` of the config file that calls this.
        name: of the other file, such as "demo.py".
    """
    path = Path(file).with_name(name)
    spec = importlib.util.spec_from_file_location(f"config_file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


# ---- conversion ----------------------------------------------------------------------------------


def from_config_dict(values: ConfigDict | Mapping[str, Any]) -> Config:
    """The frozen Config of these values; a field that is not there has its default.

    Raises:
        UserError: a name, a type or a value is wrong; names the field.
    """
    config = _read(values.to_dict() if isinstance(values, ConfigDict) else values)
    _check_values(config)
    return config


def from_saved(values: Mapping[str, Any], where: Any) -> Config:
    """The Config of values that a run of this or of an earlier version saved.

    Args:
        values: from `to_dict`, read back from JSON.
        where: file or folder they are from, for messages.
    """
    try:
        return _read(earlier_versions.translate(values))
    except UserError as error:
        raise UserError(f"The config in {where} cannot be read: {error}") from error


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with other values of some fields of `config.sample` and `config.decoding`, which
    have no name in common.

    Raises:
        UserError: neither has a field of that name, or a value is wrong.
    """
    groups = to_dict(config)
    for name, value in settings.items():
        near = difflib.get_close_matches(name, [*groups["sample"], *groups["decoding"]], n=1)
        group = "decoding" if near and near[0] in groups["decoding"] else "sample"
        groups[group][name] = value
    return from_config_dict(groups)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass, fit for JSON (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def content_hash(*parts: Any) -> str:
    """12 hex digits that change when any field of the given config dataclasses (or JSON values)
    changes.
    """
    plain = [to_dict(p) if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _read(values: Mapping[str, Any]) -> Config:
    method = _kind_class("method", values)
    start = Config(
        backbone=_kind_class("backbone", values).Config(),
        method=method.Config(),
        decoding=method.Decoding(),
    )
    return _changed(start, values, "config")


def _kind_class(group: str, values: Mapping[str, Any]) -> Any:
    """The class of BACKBONES or METHODS that `values` name for config.backbone or config.method."""
    from mebt_jax.backbones import BACKBONES  # here: these packages import this file
    from mebt_jax.methods import METHODS

    table, default = {"backbone": (BACKBONES, "mebt"), "method": (METHODS, "masked")}[group]
    fields = values.get(group, {})
    kind = fields.get("kind", default) if isinstance(fields, Mapping) else default
    if kind not in table:
        near = difflib.get_close_matches(str(kind), list(table), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the kinds are {', '.join(table)}."
        raise UserError(f"config.{group}.kind is {kind!r}, which is no {group}; {hint}")
    return table[kind]


def _changed(start: Any, values: Any, path: str) -> Any:
    """The dataclass `start` with these values of its fields, checked by name and type."""
    if not isinstance(values, Mapping):
        raise UserError(f"{path} must be a group of fields, but is {values!r}.")
    kinds = typing.get_type_hints(type(start))
    for name in values:
        if name not in kinds:
            raise UserError(unknown_field(f"{path}.{name}", [f"{path}.{known}" for known in kinds]))
    return dataclasses.replace(
        start,
        **{
            name: _converted(kinds[name], getattr(start, name), value, f"{path}.{name}")
            for name, value in values.items()
        },
    )


def unknown_field(name: str, known: typing.Sequence[str]) -> str:
    """The sentence about a field that does not exist, beside the fields that do: the new name of a
    field of an earlier version, or else the nearest of the known ones. All names are dotted, from
    "config".
    """
    group, _, last = name.rpartition(".")
    siblings = [field.rpartition(".")[2] for field in known if field.rpartition(".")[0] == group]
    if renamed := earlier_versions.new_name(name.removeprefix("config.")):
        hint = f"an earlier version had it, now it is {renamed}."
    elif near := difflib.get_close_matches(last, siblings, n=1, cutoff=0.5):
        hint = f"did you mean {group}.{near[0]}?"
    elif siblings:
        hint = f"the fields of {group} are {', '.join(siblings)}."
    elif near := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        hint = f"did you mean {near[0]}?"
    else:
        hint = "--help_fields lists every field."
    return f"Unknown config field {name}; {hint}"


def _converted(kind: Any, start: Any, value: Any, path: str) -> Any:
    """`value` as the type `kind` of a field; `start` is its value now, a dataclass for a group."""
    if dataclasses.is_dataclass(start):
        return _changed(start, value, path)
    if typing.get_origin(kind) is tuple:
        entries = typing.get_args(kind)
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{path} must be a tuple, but is {value!r} ({type(value).__name__}).")
        if entries[-1] is Ellipsis:
            entries = (entries[0],) * len(value)
        if len(entries) != len(value):
            raise UserError(f"{path} must have {len(entries)} entries, but is {tuple(value)!r}.")
        return tuple(
            _converted(kind, None, entry, f"{path}[{i}]")
            for i, (kind, entry) in enumerate(zip(entries, value))
        )
    if dataclasses.is_dataclass(kind):
        return _entry(kind, value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int: `isinstance` would let True stand for 1.
    if type(value) is not kind:
        raise UserError(
            f"{path} must be of type {kind.__name__}, but is {value!r} ({type(value).__name__})."
        )
    return value


def _entry(cls: type, value: Any, path: str) -> Any:
    """An entry of a tuple of dataclasses, none of whose fields has a default."""
    names = [declared.name for declared in dataclasses.fields(cls)]
    if isinstance(value, Mapping):
        for name in names:
            if name not in value:
                raise UserError(f"Config field {path}.{name} is missing.")
    return _changed(cls(*(None for _ in names)), value, path)


def _check_values(config: Config) -> None:
    leaves = list(walk(config, "config"))
    for name, rule, value in leaves:
        rule.check(value, name)
    _check_groups(config, config, "config")


def _check_groups(group: Any, config: Config, path: str) -> None:
    """Calls `check` of every group that has one: what must hold among several fields."""
    for declared in dataclasses.fields(group):
        value = getattr(group, declared.name)
        if dataclasses.is_dataclass(value):
            name = f"{path}.{declared.name}"
            if hasattr(value, "check"):
                value.check(config, name)
            _check_groups(value, config, name)
