"""Which array lies where on the mesh: the rules for activations and for the training state.

A logical axis is the meaning of one axis of an activation ("batch", "heads", ...). Models name the
logical axes of their arrays in `constrain`; ACTIVATIONS says which mesh axes split each of them, so
that a model never names a mesh axis. Parameters, their averages and the optimizer's moments have
two rules: TENSOR_PARAMETERS splits them over `tensor` by their names, and `state_sharding` splits
what is left over STATE_AXES by their shapes; `gather` undoes the second split of a layer's
parameters when the layer runs.

The tokenizer's activations are split by clips alone: XLA's halo exchange between devices fails, or
gives wrong numbers, where few rows are left to each device.

The functions for activations act on the mesh in scope (`runtime.mesh.jit`) and return their
arguments unchanged where there is none.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mebt_jax.runtime.mesh import BATCH_AXES, num_devices

STATE_AXES = ("fsdp", "sequence")

# Logical axis of an activation -> mesh axes that split it.
ACTIVATIONS = {
    "batch": BATCH_AXES,
    "tokens": "sequence",  # latents, contexts or targets
    "heads": "tensor",
    "hidden": "tensor",  # channels inside an MLP
    "vocabulary": "tensor",  # of logits
}
# (layer, parameter) -> the axis, counted from the end, that is split over `tensor`. A layer
# that splits its outputs is followed by one that splits its inputs, so a block sums over devices
# twice: after its attention and after its MLP.
TENSOR_PARAMETERS = {
    **{(layer, "kernel"): -1 for layer in ("query", "key", "value", "up_proj", "head")},
    **{(layer, "bias"): -1 for layer in ("query", "key", "value", "up_proj")},
    **{(layer, "kernel"): -2 for layer in ("output", "down_proj")},
}


def platform() -> str:
    """The platform that the program being traced will run on: "cpu", "gpu" or "tpu".

    It is the mesh's where one is in scope, which need not be this machine's: programs are also
    compiled ahead of time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def is_sharded(axis: str) -> bool:
    """Whether the mesh in scope splits a logical axis over more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and num_devices(mesh, ACTIVATIONS[axis]) > 1


def on_each_device(
    function: Callable[..., jax.Array],
    axes: Sequence[tuple[str | None, ...]],
    result: tuple[str | None, ...],
) -> Callable[..., jax.Array]:
    """`function` applied to each device's shard of its arguments, for kernels that the compiler
    cannot split.

    Args:
        axes: logical axes of each argument, as in `constrain`; the devices must divide them evenly.
        result: those of the result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    # Kernels do not say how their results vary over devices, so that cannot be checked.
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(PartitionSpec(*_mesh_axes(names)) for names in axes),
        out_specs=PartitionSpec(*_mesh_axes(result)),
        check_vma=False,
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` split as ACTIVATIONS says for its logical axes; None for an axis that every device holds
    whole.

    An axis shorter than the number of devices along it is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = [
        names if names is not None and size >= num_devices(mesh, names) else None
        for names, size in zip(_mesh_axes(axes), x.shape)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def copies(x: jax.Array, across: Sequence[str], *axes: str | None) -> jax.Array:
    """One copy of `x` for each shard of the logical axes `across`, [*shards, *x.shape], so that
    every device reads its own.

    In a loop the gradient of an array that devices share is summed over them in every iteration;
    the gradient of copies is summed once, after the last iteration.

    Args:
        across: logical axes.
        axes: those of `x`, as in `constrain`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = [1 if mesh.empty else num_devices(mesh, ACTIVATIONS[axis]) for axis in across]
    return constrain(jnp.broadcast_to(x, (*shards, *x.shape)), *across, *axes)


def _mesh_axes(axes: Sequence[str | None]) -> list[str | tuple[str, ...] | None]:
    return [None if axis is None else ACTIVATIONS[axis] for axis in axes]


# ---- parameters and training state ---------------------------------------------------------------


def gather(params: Any) -> Any:
    """Parameters that are about to be used, no longer split over STATE_AXES.

    Their gradients may come split in any way: no device needs more of them than its shard of the
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
    """The identity y = x, whose result is placed as `spec` says.

    Its gradient is the identity too, dL/dx = dL/dy, but without a placement. JAX's own rule for
    `with_sharding_constraint` would place dL/dy as `spec` says as well: every device would then
    receive the sum over all devices of the whole gradient (all-reduce), where its own shard of the
    sum suffices (reduce-scatter).
    """
    return jax.lax.with_sharding_constraint(x, spec)


_gathered.defvjp(lambda x, spec: (_gathered(x, spec), None), lambda spec, _, grad: (grad,))


def state_sharding(abstract_state: Any, mesh: Mesh, min_elements: int) -> Any:
    """Tree of NamedShardings for a tree of arrays or ShapeDtypeStructs: `tensor` by name,
    STATE_AXES by shape.

    An array of at least `min_elements` elements is split over STATE_AXES along its largest
    divisible axis; smaller ones are not, because gathering many small shards costs more than it
    saves.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, _state_spec(path, x.shape, mesh, min_elements)),
        abstract_state,
    )


def with_sharding(abstract_tree: Any, mesh: Mesh, min_elements: int) -> Any:
    """ShapeDtypeStructs with the shardings of `state_sharding`: the target to read part of a
    checkpoint into.
    """
    shardings = state_sharding(abstract_tree, mesh, min_elements)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_tree, shardings
    )


def _state_spec(
    path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh, min_elements: int
) -> PartitionSpec:
    """`_tensor_spec`, with the array's largest divisible axis split over STATE_AXES besides."""
    spec = _tensor_spec(path, shape, mesh)
    names, axis = _state_axis(spec, shape, mesh)
    if axis is not None and math.prod(shape) >= min_elements:
        spec[axis] = names if len(names) > 1 else names[0]
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def _state_axis(
    spec: list[str | None], shape: tuple[int, ...], mesh: Mesh
) -> tuple[tuple[str, ...], int | None]:
    """(mesh axes, the axis of the array to split over them), where `spec` is the split so far.

    Both STATE_AXES together come before either alone, then the axes within a layer before the one
    that counts layers, then the longest axis. None: no axis divides evenly.
    """
    free = [axis for axis in range(len(shape)) if spec[axis] is None]
    # The leading axis of a stacked array counts layers: a scan over a split one would move every
    # layer through every device.
    inner = [axis for axis in free if axis > 0 or len(shape) < 3]
    for names in (STATE_AXES, STATE_AXES[:1], STATE_AXES[1:]):
        names = tuple(name for name in names if mesh.shape[name] > 1)
        if not names:
            continue
        devices = num_devices(mesh, names)
        for candidates in (inner, free):
            divisible = [axis for axis in candidates if shape[axis] and shape[axis] % devices == 0]
            if divisible:
                return names, max(divisible, key=lambda axis: shape[axis])
    return (), None


def _tensor_spec(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Any) -> list[str | None]:
    """`"tensor"` for the axis that TENSOR_PARAMETERS names, where it divides evenly, else None."""
    spec: list[str | None] = [None] * len(shape)
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    axis = TENSOR_PARAMETERS.get(tuple(names[-2:]))
    devices = mesh.shape["tensor"]
    if axis is not None and devices > 1 and shape[axis] % devices == 0:
        spec[axis] = "tensor"
    return spec
