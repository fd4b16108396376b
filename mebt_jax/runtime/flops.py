"""Operations of a traced program. XLA's own count takes the body of a loop once, and believes what
a kernel declares.
"""

from typing import Any

import numpy as np
from jax.extend import core


def matrix_flops(jaxpr: Any) -> int:
    """Operations of the matrix products and convolutions of a jaxpr, every turn of a scan, over all
    devices together.
    """
    return sum(_flops(eqn) for eqn in jaxpr.eqns)


def _flops(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return (
            2 * _product(eqn.outvars[0].aval.shape) * _product([shape[axis] for axis in contracted])
        )
    if name == "conv_general_dilated":
        kernel, outputs = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        # A dilated input has zeros between its values, which no one multiplies.
        return (
            2
            * _product(eqn.outvars[0].aval.shape)
            * _product(kernel)
            // kernel[outputs]
            // _product(params["lhs_dilation"])
        )
    inner = [matrix_flops(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    turns = 1
    if name == "scan":
        turns = params["length"]
    elif name == "pallas_call":
        turns = _product(params["grid_mapping"].grid)
    elif name == "shard_map":  # shapes inside are those of one device
        turns = params["mesh"].size
    return turns * sum(inner)


def _product(sizes: Any) -> int:
    return int(np.prod(sizes, dtype=np.int64))
