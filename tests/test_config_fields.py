"""Rules of config fields: bounds, names, and what is said of them."""

import dataclasses

import pytest

from mebt_jax.config_fields import describe, field, misfits, rule_of, walk
from mebt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = field(2, "Pixels.", least=1, fits_weights=True)
    share: float = field(0.5, "Of the whole.", above=0, below=1)
    kinds: tuple[str, ...] = field(("a",), "What.", one_of={"a": 1, "b": 2}, fits_weights=True)
    top: float = field(1.0, "Most probable.", above=0, most=1)
    every: int = field(10, "Steps between lines.", no_result=True)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = field(Inner(), "A group.", may_change=True)
    decay: str = field("constant", "Of the rate.", one_of="mebt_jax.runtime.optimizers:DECAYS")


RULES = {declared.name: rule_of(declared) for declared in dataclasses.fields(Inner)}


@pytest.mark.parametrize(
    "name, good, bad, words",
    [
        ("size", (1, 9), 0, "c.size is 0, but must be at least 1."),
        ("share", (0.1, 0.9), 1.0, "c.share is 1.0, but must be between 0 and 1."),
        ("share", (), 0.0, "c.share is 0.0, but must be between 0 and 1."),
        ("top", (1.0,), 0.0, "c.top is 0.0, but must be above 0 and at most 1."),
        ("kinds", ((), ("b", "a")), ("a", "c"), "c.kinds[1] is 'c', but must be one of a, b."),
    ],
)
def test_values_are_checked_against_the_rule(name, good, bad, words):
    for value in good:
        RULES[name].check(value, f"c.{name}")
    with pytest.raises(UserError) as error:
        RULES[name].check(bad, f"c.{name}")
    assert str(error.value) == words


def test_marks_of_a_group_are_those_of_its_fields():
    marks = {name: (rule.no_result, rule.may_change) for name, rule, _ in walk(Outer(), "c")}
    assert marks["c.inner.size"] == (False, True) and marks["c.inner.every"] == (True, True)
    assert marks["c.decay"] == (False, False)


def test_weights_fit_where_the_fields_that_say_so_are_equal():
    assert list(misfits(Inner(share=0.1), Inner(share=0.2))) == []
    assert list(misfits(Inner(size=3), Inner())) == [("size", 3, 2)]


def test_the_description_has_every_field_with_value_doc_and_allowed_values():
    lines = describe(Outer(), "config").splitlines()
    assert "config.inner: A group." in lines
    at = lines.index("  --config.decay='constant'")
    assert lines[at + 1].split() == "Of the rate. (one of constant, cosine)".split()
    assert "  --config.inner.size=2" in lines
