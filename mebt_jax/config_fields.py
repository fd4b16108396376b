"""How the config dataclasses declare a field: its default, its doc and its allowed values, in one
place.

The dataclasses live in the packages that use them (`*_config.py`); `config` composes them, checks
values against these rules, and `--help_fields` prints them. Nothing here imports JAX.
"""

import dataclasses
import importlib
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from mebt_jax.errors import UserError

DTYPES = ("float32", "bfloat16")

_RULE = "rule"  # key of the metadata of a dataclass field


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field declares beside its name, type and default; see `field`."""

    doc: str = ""
    one_of: Iterable[str] | str | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    no_result: bool = False
    may_change: bool = False
    fits_weights: bool = False

    def choices(self) -> tuple[str, ...]:
        """The allowed names, () where any value of the type is allowed."""
        if self.one_of is None:
            return ()
        if isinstance(self.one_of, str):
            module, table = self.one_of.split(":")
            return tuple(getattr(importlib.import_module(module), table))
        return tuple(self.one_of)

    def allowed(self) -> str:
        """The allowed values in words, "" where any value of the type is allowed."""
        if self.one_of is not None:
            return f"one of {', '.join(self.choices())}"
        if self.above is not None and self.below is not None:
            return f"between {self.above} and {self.below}"
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        bounds = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        return " and ".join(
            f"{words} {bound}" for words, bound in bounds.items() if bound is not None
        )

    def check(self, value: Any, name: str) -> None:
        """Raises UserError if the value of the field `name`, or an entry of it, is not allowed."""
        if self.one_of is not None and isinstance(value, tuple):
            for i, entry in enumerate(value):
                self.check(entry, f"{name}[{i}]")
            return
        if self.one_of is not None:
            fits = value in self.choices()
        else:
            fits = (
                (self.least is None or value >= self.least)
                and (self.above is None or value > self.above)
                and (self.most is None or value <= self.most)
                and (self.below is None or value < self.below)
            )
        if fits:
            return
        must = "not be negative" if self.allowed() == "at least 0" else f"be {self.allowed()}"
        shown = repr(value) if isinstance(value, str) else value
        raise UserError(f"{name} is {shown}, but must {must}.")


def field(
    default: Any,
    doc: str,
    *,
    one_of: Iterable[str] | str | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    no_result: bool = False,
    may_change: bool = False,
    fits_weights: bool = False,
) -> Any:
    """A field of a config dataclass, or a group of fields.

    Args:
        default: a value, or `dataclasses.MISSING` where every config has to give one; of a group
            the dataclass with the values that its fields have by default there.
        doc: what it means, with its unit and the value of the paper or the official program.
        one_of: the allowed names, of a tuple those of each entry: names, a table whose keys they
            are, or "module:TABLE" for a table in a module that imports JAX.
        least, most: smallest and largest allowed number.
        above, below: bounds that are not allowed themselves.
        no_result: the field says where, how often, or in how many parts the work is done. It may
            change during a run, whose results stay the same up to rounding.
        may_change: the field changes a result, but a run may go on with another value: more steps
            continue the training, and the stages behind it are done again.
        fits_weights: trained weights fit only a model with the same value.
    """
    rule = Rule(doc, one_of, least, above, most, below, no_result, may_change, fits_weights)
    return dataclasses.field(default=default, metadata={_RULE: rule})


def lazy_field(default_factory: Any, doc: str, **marks: bool) -> Any:
    """A `field` whose default is made when the dataclass is."""
    return dataclasses.field(default_factory=default_factory, metadata={_RULE: Rule(doc, **marks)})


def rule_of(declared: dataclasses.Field) -> Rule:
    """The rule of a dataclass field; an empty one where it was not made by `field`."""
    return declared.metadata.get(_RULE, Rule())


def walk(group: Any, path: str, above: Rule = Rule()) -> Iterator[tuple[str, Rule, Any]]:
    """(dotted name, rule, value) of every field below a config dataclass called `path`.

    What marks a group, such as no_result, marks all of its fields. The entries of a tuple of
    dataclasses come after the tuple.
    """
    for declared in dataclasses.fields(group):
        name, value, rule = (
            f"{path}.{declared.name}",
            getattr(group, declared.name),
            rule_of(declared),
        )
        rule = dataclasses.replace(
            rule,
            no_result=rule.no_result or above.no_result,
            may_change=rule.may_change or above.may_change,
        )
        if dataclasses.is_dataclass(value):
            yield from walk(value, name, rule)
            continue
        yield name, rule, value
        if isinstance(value, tuple):
            for i, entry in enumerate(value):
                if dataclasses.is_dataclass(entry):
                    yield from walk(entry, f"{name}[{i}]", rule)


def misfits(theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value there, value here) of every differing field that weights have to fit.

    Args:
        theirs: config dataclass that the weights were trained with.
        ours: that of the model to put them into, of the same or another class.
    """
    for declared in dataclasses.fields(ours):
        name = declared.name
        there, here = getattr(theirs, name, None), getattr(ours, name)
        if rule_of(declared).fits_weights and there != here:
            yield name, there, here


def describe(group: Any, path: str) -> str:
    """Every field below a config dataclass: name and value, doc, allowed values; for people."""
    lines = []
    for declared in dataclasses.fields(group):
        name, value, rule = (
            f"{path}.{declared.name}",
            getattr(group, declared.name),
            rule_of(declared),
        )
        if dataclasses.is_dataclass(value):
            lines += ["", f"{name}: {rule.doc}", describe(value, name)]
            continue
        doc = f"{rule.doc} ({rule.allowed()})" if rule.allowed() else rule.doc
        lines += [f"  --{name}={value!r}", textwrap.indent(textwrap.fill(doc, 92), " " * 8)]
    return "\n".join(lines)
