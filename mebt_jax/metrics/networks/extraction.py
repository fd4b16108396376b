"""Runs a feature network over any number of clips in bounded memory, split over the devices, and
keeps what it found.

Only the features are held, float32 [n, D]: 2,048 clips of 400 logits are 3 MB whatever the length
of the clips.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.errors import UserError
from mebt_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature network as a pure function. `name` holds everything that decides its values:
    network, rules, weights.
    """

    name: str
    function: Callable[
        ..., jax.Array
    ]  # (weights, uint8 clips [B, F, H, W, 3]) -> float32 [B, D] or [B, windows, D]
    weights: object = ()  # any tree of arrays


def windows(frames: int, size: int, every: int) -> list[int]:
    """First frames of the windows of `size` frames, each `every` after the last, that lie whole in
    a clip.
    """
    return list(range(0, frames - size + 1, every))


def windowed(extractor: Extractor, frames: int, size: int, every: int) -> Extractor:
    """Features of each window of a clip of `frames` frames: [B, windows, D]."""
    starts = jnp.asarray(windows(frames, size, every))

    def function(weights: object, video: jax.Array) -> jax.Array:
        # One window at a time: the network is compiled once, and holds the activations of one.
        one = lambda start: extractor.function(
            weights, jax.lax.dynamic_slice_in_dim(video, start, size, axis=1)
        )  # noqa: E731
        return jnp.moveaxis(jax.lax.map(one, starts), 0, 1)

    return Extractor(
        f"{extractor.name}, windows of {size} every {every} of {frames}",
        function,
        extractor.weights,
    )


def mirrored(extractor: Extractor) -> Extractor:
    """Features of clips of which every second one in a batch is mirrored first."""

    def function(weights: object, video: jax.Array) -> jax.Array:
        odd = (jnp.arange(len(video)) % 2 == 1).reshape(-1, 1, 1, 1, 1)
        return extractor.function(weights, jnp.where(odd, video[:, :, :, ::-1], video))

    return Extractor(f"{extractor.name}, every second clip mirrored", function, extractor.weights)


def compiled(extractor: Extractor, mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Clips [B, F, H, W, 3] split over the mesh -> their features, on every device."""
    run = jax.jit(extractor.function, out_shardings=mesh_lib.replicated(mesh))
    weights = jax.device_put(extractor.weights, mesh_lib.replicated(mesh))
    return lambda video: run(weights, video)


def batches(clips: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(uint8 [size, F, H, W, 3], how many of its rows are clips) from single clips [F, H, W, 3].

    The last batch is filled up, so that it has the compiled shape, and none of its clips is
    dropped.
    """
    held: list[np.ndarray] = []
    for clip in clips:
        held.append(clip)
        if len(held) == size:
            yield np.stack(held), size
            held = []
    if held:
        yield np.stack(held + held[-1:] * (size - len(held))), len(held)


def extract(
    extractors: Sequence[Extractor], clips: Iterable[np.ndarray], size: int, mesh: Mesh
) -> list[np.ndarray]:
    """Features of all clips, uint8 [F, H, W, 3] each, by each extractor: a list of float32 [n,
    ...].

    One batch of `size` clips is in memory at a time. Every process gives the same clips and gets
    all features.
    """
    runs = [compiled(extractor, mesh) for extractor in extractors]
    found: list[list[np.ndarray]] = [[] for _ in runs]
    for batch, count in batches(clips, size):
        (video,) = mesh_lib.put_rows(mesh, batch)
        for rows, run in zip(found, runs):
            rows.append(np.asarray(run(video))[:count])
    return [np.concatenate(rows) if rows else np.zeros((0, 0), np.float32) for rows in found]


def cached(
    folder: Path, keys: Sequence[object], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays of `compute()`, or of an earlier run with equal keys (JSON values that decide the
    result) from `folder`.

    The file is written whole by the first process, and one that cannot be read is made anew.
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
