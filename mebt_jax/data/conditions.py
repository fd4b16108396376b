"""Conditions of a clip: what a model may know of it beside its pixels.

    label     one for each record: index of its class in Sources.classes, NO_LABEL for none
    actions   one for each frame of a record

A record has those that its source has. A row of a batch has the same ones, cut to its clip; a
source without classes or actions gives rows without the key, so a batch without conditions is the
batch of pixels or tokens alone. Stored tokens keep the conditions of their record.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mebt_jax.data import clips
from mebt_jax.errors import UserError

NAMES = ("label", "actions")
NO_LABEL = -1  # of a video without a class in a source that has classes


def of_record(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The conditions of a whole record, int32: label [], actions [F'] of its F' frames."""
    return {name: np.asarray(record[name], np.int32) for name in NAMES if name in record}


def of_clip(
    record: Mapping[str, Any], start: int, frames: int, stride: int
) -> dict[str, np.ndarray]:
    """The conditions of the clip of F frames that begins at frame `start` of a record, int32:
    label [], actions [F], which belong to the same frames as its pixels, also if the clip is
    stored as tokens.
    """
    conditions = of_record(record)
    if "actions" in conditions:
        conditions["actions"] = conditions["actions"][clips.window(start, frames, stride)]
    return conditions


def of_rows(rows: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The named conditions of a batch's rows, [b, ...] each; None if no names are given.

    Raises:
        UserError: the data does not have one of them.
    """
    for name in names:
        if name not in rows:
            raise UserError(
                f"config.prior.conditions names {name!r}, but the data has none; remove it, or use "
                "data with it (docs/data.md)."
            )
    return {name: rows[name] for name in names} or None


class Labelled(Sequence):
    """Records whose labels count from `first` on, or that have no label if `first` is None."""

    def __init__(self, records: Sequence[dict], first: int | None) -> None:
        self._records, self._first = records, first

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = dict(self._records[index])
        label = record.pop("label", NO_LABEL)
        if self._first is None:
            return record
        return record | {"label": label if label == NO_LABEL else self._first + label}

    def __iter__(self) -> Iterator[dict]:
        return (self[index] for index in range(len(self)))
