"""Floating-point operations of a program, counted from its jaxpr: a multiplication and an addition
count as two.

Matrix products and convolutions are counted, of all devices together and as they run: every
iteration of a scan, what a backward pass computes again, padding. XLA's own count takes the body of
a loop once, and believes what a kernel declares.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# Attention of cuDNN, whose primitives have no jaxpr: matrix products of queries by keys and of
# their transposes. Backward the scores are computed again, and four gradients follow.
CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 5,
}


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of one call of `function`, which is traced and not run.

    Args:
        function: jitted or not. Static arguments are bound first: functools.partial(f, block=16).
        arguments: trees of arrays or of ShapeDtypeStructs.
    """
    return matrix_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def matrix_flops(jaxpr: Any) -> int:
    """Operations of a jaxpr, for instance `traced.jaxpr.jaxpr` of a program that is traced already.

    Of a condition the largest branch counts; the iterations of a while loop are not known, and one
    counts.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if name in CUDNN_PRODUCTS:
        query, key = equation.invars[0].aval.shape, equation.invars[1].aval.shape  # [B, T, K, H]
        return CUDNN_PRODUCTS[name] * 2 * math.prod(query) * key[1]
    inner = [matrix_flops(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = math.prod(params["grid_mapping"].grid)
    elif name == "shard_map":  # shapes inside are those of one device
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return times * sum(inner)


def _product_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    terms = math.prod(shape[axis] for axis in contracted)  # of the sum behind each result
    return 2 * math.prod(equation.outvars[0].aval.shape) * terms


def _convolution_flops(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    terms = math.prod(kernel) // out_features
    # A dilated input has zeros between its values, which are not multiplied.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * terms // zeros
