"""An estimate of the memory that a program needs, from its jaxpr, before anything is compiled."""

from typing import Any

import jax
import numpy as np
from jax.extend import core

# Operations that XLA computes where their result is used, so that it is never stored.
FUSED = frozenset(
    """abs add and broadcast_in_dim ceil clamp convert_element_type cos copy div eq erf erfc exp
    expand_dims floor ge gt integer_pow iota is_finite le log log1p logistic lt max min mul ne neg
    not or pow real reshape rsqrt select_n sign sin sqrt square squeeze stop_gradient sub tanh xor
    slice sharding_constraint name random_bits shift_right_logical shift_left""".split()
)


def peak_bytes(jaxpr: Any) -> int:
    """Bytes of the arrays that live at one time at most, beside the arguments of the jaxpr.

    Arrays live from the equation that computes them to the last that reads them, as in the order of
    the jaxpr. Elementwise results are not stored: what they read lives on in their place. Loops
    need their carry twice. The estimate is for the shapes as written: of all devices together.
    """
    sources: dict[Any, tuple[Any, ...]] = {}  # fused results -> the stored arrays that they read
    last_use: dict[Any, int] = {}

    def stored(variable: Any) -> tuple[Any, ...]:
        if isinstance(variable, core.Literal):
            return ()
        return sources.get(variable, (variable,))

    inner: list[int] = []
    for index, eqn in enumerate(jaxpr.eqns):
        reads = tuple({s for variable in eqn.invars for s in stored(variable)})
        for variable in reads:
            last_use[variable] = index
        if eqn.primitive.name in FUSED:
            # A chain that reads few stored arrays is recomputed; else its result is stored.
            for variable in eqn.outvars:
                smaller = sum(_bytes(s) for s in reads) <= 2 * _bytes(variable)
                sources[variable] = reads if smaller or not reads else (variable,)
        inside = max((peak_bytes(j) for j in core.jaxprs_in_params(eqn.params)), default=0)
        inner.append(inside + _carry_bytes(eqn))
    for variable in jaxpr.outvars:
        for s in stored(variable):
            last_use[s] = len(jaxpr.eqns)

    live, peak = 0, 0
    ends: dict[int, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        for variable in eqn.outvars:
            if stored(variable) == (variable,) and variable in last_use:
                live += _bytes(variable)
                end = last_use[variable]
                ends[end] = ends.get(end, 0) + _bytes(variable)
        peak = max(peak, live + inner[index])
        live -= ends.pop(index, 0)
    return peak


def _carry_bytes(eqn: Any) -> int:
    """Of the second copy of a loop's carry, which the next turn is computed into."""
    if eqn.primitive.name == "scan":
        return sum(map(_bytes, eqn.outvars[: eqn.params["num_carry"]]))
    return sum(map(_bytes, eqn.outvars)) if eqn.primitive.name == "while" else 0


def _bytes(variable: Any) -> int:
    aval = variable.aval
    if not hasattr(aval, "shape") or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return 0
    return int(np.prod(aval.shape, dtype=np.int64)) * aval.dtype.itemsize
