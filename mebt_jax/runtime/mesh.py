"""Device mesh and sharding rules: the only file that knows which array lies where.

Axes: `data` (batch), `fsdp` (batch), `sequence` (tokens), `tensor` (heads, hidden channels, codes).
The tokenizer's activations are split by clips alone: XLA's exchange of borders between devices
fails, or errs, where few rows are left to each. Parameters, their averages and optimizer moments
are split over `tensor` by name, and over `fsdp` and `sequence` by shape; a layer's are gathered
over these two when it runs. Models name the axes of their activations in `constrain`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mebt_jax.config import MeshConfig
from mebt_jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")
STATE_AXES = ("fsdp", "sequence")

# Axes of activations, as the models call them -> mesh axes that split them.
ACTIVATIONS = {
    "batch": BATCH_AXES,
    "tokens": "sequence",  # latents, contexts or targets
    "heads": "tensor",
    "hidden": "tensor",  # channels inside an MLP
    "codes": "tensor",  # of logits
}
# (layer, parameter) of the transformer -> the axis, from the end, that lies along `tensor`. A layer
# that splits its outputs is followed by one that splits its inputs, so a block sums over devices
# twice: after its attention and after its MLP.
TENSOR_PARAMETERS = {
    **{(layer, "kernel"): -1 for layer in ("query", "key", "value", "mlp_in", "head")},
    **{(layer, "bias"): -1 for layer in ("query", "key", "value", "mlp_in")},
    **{(layer, "kernel"): -2 for layer in ("output", "mlp_out")},
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the axes `AXES` over `devices` (default: those of this run); -1 on one axis takes
    all that are left.

    Raises:
        UserError: the axes do not fit the devices of this run.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise UserError(
            f"config.mesh has {asked}, but each axis must be at least 1, and at most one of them "
            "-1 (all that "
            f"are left)."
        )
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if fixed > len(devices) or (open_axes and len(devices) % fixed):
        raise UserError(
            f"config.mesh asks for {asked}, which does not fit the {len(devices)} "
            f"{devices[0].platform} "
            f"device(s) of this run; choose axes whose product divides {len(devices)}."
        )
    for axis in open_axes:
        sizes[axis] = len(devices) // fixed
    used = int(np.prod(list(sizes.values())))
    if used != len(devices) and jax.process_count() > 1:
        raise UserError(
            f"config.mesh asks for {asked}, that is {used} devices, but a run of several processes "
            "must use all "
            f"its {len(devices)}; set one axis to -1."
        )
    # Auto: the compiler places intermediate values; by default every matrix product would have to
    # name its sharding.
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices[:used]})
    if slices == 1:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices[:used])
    # TPU slices are connected by a network that is a hundred times slower than the links within
    # one.
    if sizes["data"] % slices:
        raise UserError(
            f"config.mesh has data={sizes['data']}, but this run has {slices} slices, which only "
            "the data axis may "
            f"span; make it a multiple of {slices}."
        )
    within = (sizes["data"] // slices, *(sizes[axis] for axis in AXES[1:]))
    placed = mesh_utils.create_hybrid_device_mesh(
        within, (slices, 1, 1, 1), devices[:used], allow_split_physical_axes=True
    )
    return Mesh(placed, AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises UserError if `batch_size` clips cannot be spread evenly; `field` is the config field
    to mend.
    """
    shards = _devices(mesh, BATCH_AXES)
    if batch_size % shards:
        raise UserError(
            f"{field} gives {batch_size} clips at a time, which do not spread evenly over the "
            f"{shards} devices "
            f"of the mesh's data and fsdp axes; make it a multiple of {shards} or set config.mesh."
        )


def check_heads(mesh: Mesh, heads: int) -> None:
    """Raises UserError if the heads of the transformer cannot be spread evenly over the tensor
    axis.
    """
    if heads % mesh.shape["tensor"]:
        raise UserError(
            f"config.mesh.tensor is {mesh.shape['tensor']}, which does not divide "
            f"config.transformer.heads {heads}; "
            f"choose one of its divisors."
        )


def on_mesh(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which is to be jitted, with the mesh that `constrain` and `gather` inside it are
    about.
    """

    @functools.wraps(function)
    def placed(*args: Any, **kwargs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return function if mesh is None else placed


def platform() -> str:
    """What the program being traced is for: "cpu", "gpu" or "tpu". Inside `on_mesh` not always what
    this machine has.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def splits(axis: str) -> bool:
    """Whether an axis of ACTIVATIONS is split at all by the mesh of `on_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and _devices(mesh, ACTIVATIONS[axis]) > 1


def on_each_device(
    function: Callable[..., jax.Array],
    axes: Sequence[tuple[str | None, ...]],
    result: tuple[str | None, ...],
) -> Callable[..., jax.Array]:
    """`function` on each device's part of its arguments, for kernels that the compiler cannot
    split.

    Args:
        axes: names of the axes of each argument, as in `constrain`; they must divide evenly.
        result: those of the result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    specs = [
        PartitionSpec(*(None if axis is None else ACTIVATIONS[axis] for axis in names))
        for names in (*axes, result)
    ]
    # Kernels do not say how their results vary over devices, so that cannot be checked.
    return jax.shard_map(
        function, mesh=mesh, in_specs=tuple(specs[:-1]), out_specs=specs[-1], check_vma=False
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` split as ACTIVATIONS says for its axes, None for one that every device holds whole;
    outside of `on_mesh` just `x`.

    An axis shorter than the number of devices along it is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    names = [None if axis is None else ACTIVATIONS[axis] for axis in axes]
    fitting = [
        name if name is not None and size >= _devices(mesh, name) else None
        for name, size in zip(names, x.shape)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitting))


def copies(x: jax.Array, across: Sequence[str], *axes: str | None) -> jax.Array:
    """`x` once for each part that the axes `across` are split into, [*parts, *x.shape], so that
    every device has its own.

    In a loop the gradient of an array that devices share is summed over them in every turn; that of
    copies once, after the last.

    Args:
        across: axes of ACTIVATIONS.
        axes: those of `x`, as in `constrain`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = [1 if mesh.empty else _devices(mesh, ACTIVATIONS[axis]) for axis in across]
    return constrain(jnp.broadcast_to(x, (*parts, *x.shape)), *across, *axes)


def gather(params: Any) -> Any:
    """Parameters about to be used, no longer split over STATE_AXES; outside of `on_mesh` they are
    returned as they are.

    Their gradients may come split in any way: no device needs more of them than its part of the
    state.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _gathered(x, PartitionSpec(*_tensor_spec(path, x.shape, mesh))), params
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, spec)


_gathered.defvjp(lambda x, spec: (_gathered(x, spec), None), lambda spec, _, gradient: (gradient,))


def state_sharding(abstract_state: Any, mesh: Mesh, min_elements: int) -> Any:
    """Tree of NamedShardings for a tree of arrays or ShapeDtypeStructs: `tensor` by name,
    STATE_AXES by shape.

    An array of at least `min_elements` elements is split over STATE_AXES along its largest
    divisible axis; smaller ones are not, because gathering many small pieces costs more than it
    saves.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, _state_spec(path, x.shape, mesh, min_elements)),
        abstract_state,
    )


def _state_spec(
    path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh, min_elements: int
) -> PartitionSpec:
    spec = _tensor_spec(path, shape, mesh)
    # The leading axis of a stacked array counts layers: a scan over a split one would move every
    # layer through every device.
    free = [axis for axis in range(len(shape)) if spec[axis] is None]
    inner = [axis for axis in free if axis > 0 or len(shape) < 3]
    for names in (STATE_AXES, STATE_AXES[:1], STATE_AXES[1:]):
        names = tuple(name for name in names if mesh.shape[name] > 1)
        for axes in (inner, free):
            divisible = [
                axis for axis in axes if shape[axis] and shape[axis] % _devices(mesh, names) == 0
            ]
            if names and divisible and np.prod(shape) >= min_elements:
                spec[max(divisible, key=lambda axis: shape[axis])] = (
                    names if len(names) > 1 else names[0]
                )
                return PartitionSpec(*spec)
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def _tensor_spec(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Any) -> list[str | None]:
    """One entry per axis: "tensor" or None."""
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    axis = TENSOR_PARAMETERS.get(tuple(names[-2:]))
    split = (
        axis is not None and mesh.shape["tensor"] > 1 and shape[axis] % mesh.shape["tensor"] == 0
    )
    return [("tensor" if split and i == len(shape) + axis else None) for i in range(len(shape))]


def _devices(mesh: Any, names: str | tuple[str, ...]) -> int:
    return int(
        np.prod([mesh.shape[name] for name in ((names,) if isinstance(names, str) else names)])
    )


def host_share(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """(parts, n): of n even parts of every batch, those that the devices of this process hold.

    They need not be neighbours, and processes share a part where a clip is split over devices of
    several.
    """
    of_part = mesh.devices.reshape(
        _devices(mesh, BATCH_AXES), -1
    )  # [n, devices that hold the part]
    mine = [
        part
        for part, devices in enumerate(of_part)
        if any(d.process_index == jax.process_index() for d in devices)
    ]
    return (tuple(mine), len(of_part)) if len(mine) < len(of_part) else ((0,), 1)


def host_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Numbers of those of the `rows` rows of a batch that the devices of this process hold."""
    parts, number = host_share(mesh)
    return np.arange(rows).reshape(number, -1)[list(parts)].reshape(-1)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from this process's rows (`host_rows`) of each field, split by
    `batch_sharding`.
    """
    parts, number = host_share(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(parts)

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(number * size)
            first = parts.index(start // size) * size + start % size
            return rows[first : first + stop - start]

        return jax.make_array_from_callback(
            (number * size, *rows.shape[1:]), batch_sharding(mesh), of_device
        )

    return {name: put(np.asarray(rows)) for name, rows in batch.items()}


def put_rows(mesh: Mesh, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Global arrays from host arrays [B, ...] that every process holds whole, split by
    `batch_sharding`.
    """
    return tuple(jax.device_put(array, batch_sharding(mesh)) for array in arrays)


def with_sharding(abstract_tree: Any, mesh: Mesh, min_elements: int) -> Any:
    """ShapeDtypeStructs with the shardings of `state_sharding`: the target to read part of a
    checkpoint into.
    """
    shardings = state_sharding(abstract_tree, mesh, min_elements)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_tree, shardings
    )


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows [b, ...] of a batch-sharded array that lie on this process, in order and each
    once.
    """
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_host(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """The whole of a sharded array, on every process."""
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated(mesh))(array))
