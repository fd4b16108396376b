"""The device mesh: its axes, what must fit it, and the one way to compile a program for it.

Axes: `data` (clips), `fsdp` (clips, and the training state), `sequence` (tokens, and the training
state), `tensor` (heads, hidden channels, logits).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mebt_jax.errors import UserError
from mebt_jax.runtime.runtime_config import MeshConfig

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the axes AXES over `devices` (default: those of this run). The size -1 of one axis
    stands for all devices that are left.

    Raises:
        UserError: the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _axis_sizes(config, devices)
    used = devices[: math.prod(sizes.values())]
    # Auto: the compiler places intermediate values. JAX's default would have every matrix product
    # name its sharding.
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in used})
    if slices == 1:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=used)
    # The network between TPU slices is a hundred times slower than the links within a slice.
    if sizes["data"] % slices:
        raise UserError(
            f"config.mesh has data={sizes['data']}, but this run has {slices} slices, which only "
            f"the data axis may span; make it a multiple of {slices}."
        )
    within = (sizes["data"] // slices, *(sizes[axis] for axis in AXES[1:]))
    placed = mesh_utils.create_hybrid_device_mesh(
        within, (slices, 1, 1, 1), used, allow_split_physical_axes=True
    )
    return Mesh(placed, AXES, axis_types=types)


def _axis_sizes(config: MeshConfig, devices: Sequence[jax.Device]) -> dict[str, int]:
    """Devices along each of AXES; raises UserError as `make_mesh`."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise UserError(
            f"config.mesh has {text}, but each axis must be at least 1, and at most one of them -1 "
            "(all devices that are left)."
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > len(devices) or (open_axes and len(devices) % fixed):
        raise UserError(
            f"config.mesh has {text}, which does not fit the {len(devices)} {devices[0].platform} "
            f"device(s) of this run; choose axes whose product divides {len(devices)}."
        )
    for axis in open_axes:
        sizes[axis] = len(devices) // fixed
    used = math.prod(sizes.values())
    if used != len(devices) and jax.process_count() > 1:
        raise UserError(
            f"config.mesh has {text}, that is {used} devices, but a run of several processes must "
            f"use all its {len(devices)}; set one axis to -1."
        )
    return sizes


def num_devices(mesh: Any, axes: str | Sequence[str]) -> int:
    """Devices along an axis, or along several axes together, of a Mesh or AbstractMesh."""
    axes = (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[axis] for axis in axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises UserError if `batch_size` clips, which `field` of the config gives, cannot be spread
    evenly.
    """
    shards = num_devices(mesh, BATCH_AXES)
    if batch_size % shards:
        raise UserError(
            f"{field} gives {batch_size} clips at a time, which do not spread evenly over the "
            f"{shards} devices of the mesh's data and fsdp axes; make it a multiple of {shards} or "
            "set config.mesh."
        )


def check_heads(mesh: Mesh, heads: int) -> None:
    """Raises UserError if attention heads cannot be spread evenly over the tensor axis."""
    if heads % mesh.shape["tensor"]:
        raise UserError(
            f"config.mesh.tensor is {mesh.shape['tensor']}, which does not divide "
            f"config.backbone.heads {heads}; choose one of its divisors."
        )


def jit(mesh: Mesh | None, function: Callable[..., Any], **jit_arguments: Any) -> Any:
    """`jax.jit(function, **jit_arguments)` for the devices of `mesh`: the only way to compile in
    the stages, the sampler and the methods.

    A program of several devices that is traced without its mesh keeps its activations whole, and
    TPUs refuse its attention kernels. The devices are those of the arguments, or of the shardings
    among `jit_arguments`. Each call compiles anew, so call it once per program.

    Args:
        mesh: None compiles for one device.
        jit_arguments: those of `jax.jit`.
    """
    return jax.jit(on_mesh(mesh, function), **jit_arguments)


def on_mesh(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` that is traced with `mesh` in scope, where `runtime.sharding` looks for it; None
    returns `function` itself.
    """
    if mesh is None:
        return function

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return wrapper
