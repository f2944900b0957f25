"""FLOPs of a program, counted in what JAX traced: the same on every device, and loops as often as they run.

XLA's own count (`compiled.cost_analysis()`) takes a loop's body once, and on a GPU leaves out what it hands to cuBLAS
and cuDNN.
"""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def matrix_flops(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """FLOPs of all matrix products and convolutions of a jaxpr, 2 per multiply-add; nothing else is counted.

    The zeros that the gradient of a strided convolution inserts are not counted; the padding at the borders of
    convolutions is. Of `cond` the branch with the most FLOPs counts; of `while_loop`, whose length is unknown, one
    iteration.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = shape_of(eqn.invars[0])
            total += 2.0 * math.prod(shape_of(eqn.outvars[0])) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            total += convolution_flops(eqn)
        else:
            inner = [matrix_flops(sub) for value in params.values() for sub in jaxprs_in(value)]
            total += max(inner, default=0.0) if name == "cond" else sum(inner) * params.get("length", 1)
    return total


def convolution_flops(eqn: JaxprEqn) -> float:
    """Each output sums a window of the kernel over the channels of one group; a dilated input is mostly zeros."""
    kernel, params = shape_of(eqn.invars[1]), eqn.params
    out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
    window = math.prod(kernel) / out_features
    return 2.0 * math.prod(shape_of(eqn.outvars[0])) * window / math.prod(params["lhs_dilation"])


def shape_of(variable: Any) -> tuple[int, ...]:
    """The shape of a jaxpr variable that is an array."""
    return variable.aval.shape


def jaxprs_in(value: Any) -> list[Any]:
    """The jaxprs that a parameter of an equation is or contains."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
