"""Measures of clips: one interface for numbers and for features, for real, reconstructed and
generated clips, computed on the devices in bounded memory.

Only the values are kept, float32 [n, ...]: 2,048 clips with 400 logits each are 3 MB whatever the
length of the clips.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.errors import UserError
from mebt_jax.runtime import host_arrays
from mebt_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number or features of each clip, as a pure function.

    Attributes:
        name: everything that decides the values: network, rules, weights. Stored values are found
            by it.
        function: (weights, clips uint8 [B, F, H, W, 3]) -> float32 [B, ...]; a measure of pairs
            takes real clips and their reconstructions.
        weights: any tree of arrays.
        definition: of a number [B], what its mean over "{clips}" is; empty for features.
    """

    name: str
    function: Callable[..., jax.Array]
    weights: Any = ()
    definition: str = ""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured of each kind of clips, by the name of the values."""

    real: Mapping[str, Measure]
    reconstructed: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
    pairs: Mapping[str, Measure] = dataclasses.field(default_factory=dict)  # (real, reconstructed)
    generated: Mapping[str, Measure] = dataclasses.field(default_factory=dict)


# ---- measures made of others ---------------------------------------------------------------------


def windows(frames: int, size: int, every: int) -> list[int]:
    """First frames of the windows of `size` frames, each `every` after the last, that lie whole in
    a clip.
    """
    return list(range(0, frames - size + 1, every))


def windowed(measure: Measure, frames: int, size: int, every: int) -> Measure:
    """The measure of each window of clips of `frames` frames: [B, windows, ...]."""
    starts = np.asarray(windows(frames, size, every))

    def function(weights: Any, video: jax.Array) -> jax.Array:
        def measure_window(start: jax.Array) -> jax.Array:
            window = jax.lax.dynamic_slice_in_dim(video, start, size, axis=1)
            return measure.function(weights, window)

        # One window after the other: the network is compiled once, and the activations of one
        # window are in memory.
        return jnp.moveaxis(jax.lax.map(measure_window, starts), 0, 1)

    name = f"{measure.name}, windows of {size} every {every} of {frames}"
    return Measure(name, function, measure.weights)


def mirrored(measure: Measure) -> Measure:
    """The measure of clips of which every second one in a batch is mirrored first."""

    def function(weights: Any, video: jax.Array) -> jax.Array:
        odd = (jnp.arange(len(video)) % 2 == 1).reshape(-1, 1, 1, 1, 1)
        return measure.function(weights, jnp.where(odd, video[:, :, :, ::-1], video))

    return Measure(f"{measure.name}, every second clip mirrored", function, measure.weights)


# ---- computation ---------------------------------------------------------------------------------

Values = dict[str, np.ndarray]  # [n, ...] each


def compiled(measures: Mapping[str, Measure], mesh: Mesh) -> Callable[..., dict[str, jax.Array]]:
    """A function of clips [B, F, H, W, 3] split over the mesh -> values [B, ...] by name, on every
    device.

    Each measure is a program of its own, so that the activations of one network are in memory.
    """
    everywhere = mesh_lib.replicated(mesh)
    # Measures of the same weights share them on the devices.
    placed = {id(measure.weights): measure.weights for measure in measures.values()}
    placed = {key: jax.device_put(weights, everywhere) for key, weights in placed.items()}
    programs = {name: program(measure, mesh) for name, measure in measures.items()}

    def run(*clips: jax.Array) -> dict[str, jax.Array]:
        return {
            name: compute(placed[id(measures[name].weights)], *clips)
            for name, compute in programs.items()
        }

    return run


def program(measure: Measure, mesh: Mesh) -> Any:
    """The measure's function compiled for clips that are split over the mesh; its values lie on
    every device.
    """
    return mesh_lib.jit(mesh, measure.function, out_shardings=mesh_lib.replicated(mesh))


def measure_clips(
    run: Callable[..., dict[str, jax.Array]], clips: Iterable[np.ndarray], size: int, mesh: Mesh
) -> Values:
    """Values of all clips, uint8 [F, H, W, 3] each, by name; {} of none.

    One batch of `size` clips is in memory at a time. Every process gives the same clips and gets
    all values.

    Args:
        run: from `compiled`.
    """
    values = [
        first_rows(run(*host_arrays.put_rows(mesh, batch)), count)
        for batch, count in batches(clips, size)
    ]
    return join(values) if values else {}


def batches(clips: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(array [size, ...], how many of its rows are clips) from single clips [...].

    The last batch is filled up with its last clip, so that it has the compiled shape and no clip is
    left out.
    """
    rows: list[np.ndarray] = []
    for clip in clips:
        rows.append(clip)
        if len(rows) == size:
            yield np.stack(rows), size
            rows = []
    if rows:
        yield np.stack(rows + rows[-1:] * (size - len(rows))), len(rows)


def first_rows(values: Any, count: int) -> Any:
    """The first `count` rows of a tree of arrays [B, ...], on the host."""
    return jax.tree.map(lambda rows: rows[:count], jax.device_get(values))


def join(batches: Sequence[Any]) -> Any:
    """One tree of arrays [n, ...] from those of batches [b, ...]."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *batches)


def cached(folder: Path, keys: Sequence[object], compute: Callable[[], Values]) -> Values:
    """Arrays of `compute()`, or of an earlier run with equal keys (JSON values that decide the
    result) from `folder`.

    The file is written whole by the first process, and one that cannot be read is written again.
    """
    path = folder / f"features_{config_lib.content_hash(*keys)}.npz"
    if path.exists():
        try:
            with np.load(path) as arrays:  # never unpickles
                return dict(arrays)
        except (OSError, ValueError, EOFError):
            pass
    arrays = compute()
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        try:
            np.savez_compressed(temporary, **arrays)
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(
                f"Could not write {path} ({error.strerror}); free some space or choose another "
                "--workdir."
            ) from error
    return arrays
