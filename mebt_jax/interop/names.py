"""Tables from official PyTorch parameters to the leaves of our trees, for all conversions.

A `Part` names, for every leaf of one of our trees, its official parameters and the map of their
axes. Both directions read the same table, so a round trip is exact bit for bit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax import nnx, traverse_util

from mebt_jax.errors import UserError

Path = tuple[str | int, ...]
Leaves = dict[Path, np.ndarray]

LINEAR = "o i -> i o"
CONV2D = "o i h w -> h w i o"
CONV3D = "o i f h w -> f h w i o"
TRANSPOSED3D = "i o f h w -> f h w i o"  # transposed convolutions keep their inputs first


@dataclasses.dataclass(frozen=True)
class Pair:
    """Official `names` of one leaf of ours; several are stacked along a new first axis.

    `layout` is an einops pattern from their axes to ours, "" if the axes are the same; `sizes` are
    the axis sizes that the pattern needs.
    """

    names: tuple[str, ...]
    layout: str = ""
    sizes: tuple[tuple[str, int], ...] = ()

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        return rearrange(array, self.layout, **dict(self.sizes)) if self.layout else array

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        theirs, _, ours = self.layout.partition(" -> ")
        return rearrange(array, f"{ours} -> {theirs}", **dict(self.sizes)) if self.layout else array


@dataclasses.dataclass(frozen=True)
class Part:
    """A tree of ours: pair and shape of every leaf."""

    pairs: dict[Path, Pair]
    shapes: dict[Path, tuple[int, ...]]

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every official parameter of this part."""
        shapes = {}
        for path, pair in self.pairs.items():
            shape = self.shapes[path][1:] if len(pair.names) > 1 else self.shapes[path]
            without_memory = np.broadcast_to(np.zeros((), bool), shape)
            shapes |= dict.fromkeys(pair.names, pair.to_theirs(without_memory).shape)
        return shapes


def part_of(tree: Any, pair_of: Callable[[Path], Pair]) -> Part:
    """The part of an nnx state or a nested dict of arrays (abstract ones will do)."""
    leaves = leaves_of(tree)
    return Part(
        {path: pair_of(path) for path in leaves},
        {path: tuple(leaf.shape) for path, leaf in leaves.items()},
    )


def leaves_of(tree: Any) -> dict[Path, Any]:
    """Leaves of an nnx state or a nested dict by path."""
    return traverse_util.flatten_dict(
        nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree
    )


def filled(state: nnx.State, leaves: Leaves) -> nnx.State:
    """A copy of an (abstract) nnx state with these leaves."""
    copy = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(copy, traverse_util.unflatten_dict(leaves))
    return copy


def from_official(
    arrays: Mapping[str, np.ndarray], parts: Mapping[str, Part], *, fix: str
) -> dict[str, Leaves]:
    """Leaves of every part, float32, from official arrays that are each used exactly once.

    Raises:
        UserError: lists the names that are missing, unknown, of another shape or not finite, and
            ends with `fix`.
    """
    shapes = {
        name: shape for part in parts.values() for name, shape in part.official_shapes().items()
    }
    problems = [f"{name} is missing" for name in shapes if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in shapes]
    problems += [
        f"{name} has shape {tuple(arrays[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    problems += [
        f"{name} is not finite"
        for name in shapes
        if name in arrays and not np.isfinite(arrays[name]).all()
    ]
    if problems:
        raise UserError(f"The official weights do not fit: {'; '.join(sorted(problems))}; {fix}")
    return {
        name: {path: _leaf(arrays, pair) for path, pair in part.pairs.items()}
        for name, part in parts.items()
    }


def to_official(leaves: Mapping[Path, Any], part: Part) -> dict[str, np.ndarray]:
    """The inverse of `from_official` for one part, C-contiguous."""
    arrays = {}
    for path, pair in part.pairs.items():
        leaf = np.asarray(leaves[path])
        layers = list(leaf) if len(pair.names) > 1 else [leaf]
        arrays |= {
            name: np.ascontiguousarray(pair.to_theirs(layer)).reshape(pair.to_theirs(layer).shape)
            for name, layer in zip(pair.names, layers)
        }
    return arrays


def without_counters(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All arrays but `num_batches_tracked`, the number of training steps of a BatchNorm, which no
    computation reads.
    """
    return {
        name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")
    }


def _leaf(arrays: Mapping[str, np.ndarray], pair: Pair) -> np.ndarray:
    layers = [pair.to_ours(np.asarray(arrays[name], np.float32)) for name in pair.names]
    if len(layers) > 1:
        return np.stack(layers)
    return np.ascontiguousarray(layers[0]).reshape(layers[0].shape)
