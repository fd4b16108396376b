"""Random keys of drawn clips: clip i of a run follows from the seed and i alone."""

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from mebt_jax.runtime import mesh as mesh_lib

# Roots of a clip's random numbers, by fold_in.
PASSES, PARTITIONS, ORDER, WINDOW = range(4)


def clip_keys(seed: int, indices: jax.Array) -> jax.Array:
    """One key per clip [B]: fold_in(key(seed), index)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)


def window_keys(keys: jax.Array, window: jax.Array) -> jax.Array:
    """Keys [B] for a later window of the videos whose first windows have `keys`."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, WINDOW), window))(keys)


@functools.cache
def clip_keys_program(mesh: Mesh) -> Any:
    """`clip_keys` compiled for the mesh, keys split over clips; the seed is static."""
    return mesh_lib.jit(
        mesh, clip_keys, static_argnums=0, out_shardings=mesh_lib.batch_sharding(mesh)
    )


@functools.cache
def window_keys_program(mesh: Mesh) -> Any:
    """`window_keys` compiled for the mesh."""
    return mesh_lib.jit(mesh, window_keys, out_shardings=mesh_lib.batch_sharding(mesh))
