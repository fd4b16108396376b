"""Batches between this process's memory and the devices of the mesh."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mebt_jax.runtime.mesh import BATCH_AXES, batch_sharding, num_devices, replicated


def host_shard(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """(indices, n): of n equal parts of every batch, the indices of those that the devices of this
    process hold.

    They need not be consecutive, and several processes have the same index where a clip is split
    over the devices of several.
    """
    parts = mesh.devices.reshape(num_devices(mesh, BATCH_AXES), -1)  # [n, devices of the part]
    mine = [
        index
        for index, devices in enumerate(parts)
        if any(device.process_index == jax.process_index() for device in devices)
    ]
    return (tuple(mine), len(parts)) if len(mine) < len(parts) else ((0,), 1)


def host_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Indices of those of the `rows` rows of a batch that the devices of this process hold."""
    indices, number = host_shard(mesh)
    return np.arange(rows).reshape(number, -1)[list(indices)].reshape(-1)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from this process's rows (`host_rows`) of each field, split by
    `batch_sharding`.
    """
    indices, number = host_shard(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        shape = (len(rows) // len(indices) * number, *rows.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh), rows, shape)

    return {name: put(np.asarray(rows)) for name, rows in batch.items()}


def put_rows(mesh: Mesh, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Global arrays from host arrays [B, ...] that every process holds whole, split by
    `batch_sharding`.
    """
    return tuple(jax.device_put(array, batch_sharding(mesh)) for array in arrays)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows [b, ...] of a batch-sharded array that lie on this process, in order and each
    once.
    """
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_host(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """The whole of a sharded array, on every process."""
    return np.asarray(jax.jit(_identity, out_shardings=replicated(mesh))(array))


def _identity(x: jax.Array) -> jax.Array:  # a function of the module: it is compiled once a shape
    return x
