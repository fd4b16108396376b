"""Device mesh and sharding rules: the only file that knows which array lies where.

Axes: `data` (batch), `fsdp` (batch, and large parameters are split), `sequence` (tokens), `tensor` (widths). The batch
is split over `data` and `fsdp`; parameters, their averages and optimizer moments are split over `fsdp` by shape.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mebt_jax.config import MeshConfig
from mebt_jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the axes `AXES` over `devices` (default: those of this run); -1 on one axis takes all that are left.

    Raises:
        UserError: the axes do not fit the devices of this run.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise UserError(f"config.mesh has {asked}, but each axis must be at least 1, and at most one of them -1 (all that "
                        f"are left).")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if fixed > len(devices) or (open_axes and len(devices) % fixed):
        raise UserError(f"config.mesh asks for {asked}, which does not fit the {len(devices)} {devices[0].platform} "
                        f"device(s) of this run; choose axes whose product divides {len(devices)}.")
    for axis in open_axes:
        sizes[axis] = len(devices) // fixed
    used = int(np.prod(list(sizes.values())))
    if used != len(devices) and jax.process_count() > 1:
        raise UserError(f"config.mesh asks for {asked}, that is {used} devices, but a run of several processes must use all "
                        f"its {len(devices)}; set one axis to -1.")
    # Auto: the compiler places intermediate values; by default every matrix product would have to name its sharding.
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:used])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises UserError if `batch_size` clips cannot be spread evenly; `field` is the config field to mend."""
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if batch_size % shards:
        raise UserError(f"{field} gives {batch_size} clips at a time, which do not spread evenly over the {shards} devices "
                        f"of the mesh's data and fsdp axes; make it a multiple of {shards} or set config.mesh.")


def state_sharding(abstract_state: Any, mesh: Mesh, min_elements: int) -> Any:
    """Tree of NamedShardings for a tree of arrays or ShapeDtypeStructs: FSDP by shape.

    An array of at least `min_elements` elements is split over `fsdp` along its largest divisible axis; all others are
    replicated, because gathering many small pieces costs more than it saves.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _fsdp_spec(x.shape, mesh.shape["fsdp"], min_elements)), abstract_state)


def _fsdp_spec(shape: tuple[int, ...], fsdp: int, min_elements: int) -> PartitionSpec:
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0 and size > 0]
    if fsdp == 1 or not divisible or np.prod(shape) < min_elements:
        return PartitionSpec()
    # The leading axis of a stacked array counts layers: a scan over a split one would move every layer through every device.
    inner = [axis for axis in divisible if axis > 0 or len(shape) < 3] or divisible
    axis = max(inner, key=lambda a: shape[a])
    return PartitionSpec(*(("fsdp" if a == axis else None) for a in range(len(shape))))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from this process's rows [B / processes, ...] of each field, split by `batch_sharding`."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(rows)) for name, rows in batch.items()}


def put_rows(mesh: Mesh, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Global arrays from host arrays [B, ...] that every process holds whole, split by `batch_sharding`."""
    return tuple(jax.device_put(array, batch_sharding(mesh)) for array in arrays)


def with_sharding(abstract_tree: Any, mesh: Mesh, min_elements: int) -> Any:
    """ShapeDtypeStructs with the shardings of `state_sharding`: the target to read part of a checkpoint into."""
    shardings = state_sharding(abstract_tree, mesh, min_elements)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_tree, shardings)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows [b, ...] of a batch-sharded array that lie on this process, in order and each once."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_host(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """The whole of a sharded array, on every process."""
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated(mesh))(array))
