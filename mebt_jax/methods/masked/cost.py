"""What decoding costs, before anything is compiled: operations of a clip, and memory of a batch.

Both are read off the traced passes, so they hold for every backbone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.methods.interface import SamplingProgram
from mebt_jax.methods.masked import decode
from mebt_jax.methods.masked.orders import Grid
from mebt_jax.methods.masked.passes import DecodeState, PassInputs
from mebt_jax.methods.masked.plan import Pass, Plan, Sizes, shared_sizes
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.flops import matrix_flops
from mebt_jax.runtime.live_memory import peak_bytes


def distinct_passes(plan: Plan) -> list[tuple[Pass, Sizes, int]]:
    """A pass of each compiled program, its sizes, and how many passes share the program."""
    found: dict[Any, list[Pass]] = {}
    for step, sizes in zip(plan.passes, shared_sizes(plan)):
        found.setdefault((step.kind, sizes), []).append(step)
    return [(passes[0], sizes, len(passes)) for (_, sizes), passes in found.items()]


def plan_flops(
    graphdef: nnx.GraphDef, params: Any, plan: Plan, grid: Grid, *, plain: bool = False
) -> int:
    """Operations of the matrix products of one clip, padding included; a multiplication and an
    addition count as two.

    Args:
        graphdef, params: the backbone; its arrays may be abstract.
        plan: the passes.
        grid: (T, H, W).
        plain: without cache, and with the whole model for all targets.
    """
    return sum(
        count * matrix_flops(traced_pass(graphdef, params, plan, grid, step, sizes, plain=plain))
        for step, sizes, count in distinct_passes(plan)
    )


def clip_bytes(graphdef: nnx.GraphDef, params: Any, plan: Plan, grid: Grid) -> int:
    """Bytes per clip at the widest pass: the decoding state with its cache, and what the pass
    computes. An estimate: compilers fuse and reorder.
    """
    state = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_state(graphdef, params, plan, grid, clips=1))
    )
    return state + max(
        peak_bytes(traced_pass(graphdef, params, plan, grid, step, sizes)) - state
        for step, sizes, _ in distinct_passes(plan)
    )


def pass_programs(
    graphdef: nnx.GraphDef, params: Any, plan: Plan, grid: Grid, batch_size: int, mesh: Mesh
) -> list[SamplingProgram]:
    """The passes of a plan as `decode` compiles them for a mesh, from abstract parameters."""
    batch = mesh_lib.batch_sharding(mesh)

    def split(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch)

    state = jax.tree.map(split, abstract_state(graphdef, params, plan, grid, clips=batch_size))
    keys, run = split(abstract_keys(batch_size)), decode.pass_program(mesh)
    programs = []
    for step, sizes, turns in distinct_passes(plan):
        inputs = jax.eval_shape(functools.partial(PassInputs.of, 0, step))
        spec = decode.pass_spec(plan, step, sizes)
        flops = matrix_flops(traced_pass(graphdef, params, plan, grid, step, sizes))
        programs.append(
            SamplingProgram(
                f"{step.kind} pass of {sizes.targets} targets",
                run.trace(graphdef, params, state, keys, None, inputs, spec=spec),
                state,
                flops * batch_size,
                turns,
            )
        )
    return programs


def abstract_state(
    graphdef: nnx.GraphDef, params: Any, plan: Plan, grid: Grid, *, clips: int, plain: bool = False
) -> DecodeState:
    """Shapes of the state of decoding a batch of clips."""
    shape = (clips, plan.num_tokens)
    start = functools.partial(decode.start, graphdef, plan=plan, grid=grid, plain=plain, mesh=None)
    tokens, known = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool_))
    return jax.eval_shape(start, params, abstract_keys(clips), tokens, known, None)


def abstract_keys(clips: int) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips))


@functools.lru_cache(maxsize=64)
def _traced(graphdef: Any, spec: Any, avals: Any, treedef: Any) -> Any:
    abstract = jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    run = functools.partial(decode.run_pass, graphdef, spec=spec, mesh=None)
    return jax.make_jaxpr(run)(*abstract).jaxpr


def traced_pass(
    graphdef: nnx.GraphDef,
    params: Any,
    plan: Plan,
    grid: Grid,
    step: Pass,
    sizes: Sizes,
    *,
    plain: bool = False,
) -> Any:
    """The jaxpr of `decode.run_pass` for one clip."""
    state = abstract_state(graphdef, params, plan, grid, clips=1, plain=plain)
    inputs = jax.eval_shape(functools.partial(PassInputs.of, 0, step))
    spec = decode.pass_spec(plan, step, sizes, plain=plain)
    leaves, treedef = jax.tree.flatten((params, state, abstract_keys(1), None, inputs))
    avals = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return _traced(graphdef, spec, avals, treedef)
