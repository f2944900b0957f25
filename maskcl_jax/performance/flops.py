"""FLOPs of a program, counted in what JAX traced: the same on every device, and loops as often as they run.

A compiler's own count (`compiled.cost_analysis()`) takes a loop's body once, and on a GPU leaves out what it hands to
cuBLAS and cuDNN.
"""

import math


def matrix_flops(jaxpr) -> float:
    """FLOPs of all matrix products and convolutions of a (closed) jaxpr, 2 a multiply-add; nothing else is counted.

    Of a strided convolution's gradient no zeros are counted, at the borders of all convolutions the padding is. Of
    `cond` the longest branch counts; of a `while_loop`, whose length nobody knows, one round.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2.0 * size(eqn.outvars[0]) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            total += convolution(eqn)
        else:
            inner = [matrix_flops(sub) for value in params.values() for sub in jaxprs_of(value)]
            total += max(inner, default=0.0) if name == "cond" else sum(inner) * params.get("length", 1)
    return total


def convolution(eqn) -> float:
    """Every output takes a window of the kernel, over the channels of one group; of a dilated input most are zeros."""
    kernel, params = eqn.invars[1].aval.shape, eqn.params
    out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
    window = math.prod(kernel) / out_features
    return 2.0 * size(eqn.outvars[0]) * window / math.prod(params["lhs_dilation"])


def size(variable) -> int:
    """How many numbers it holds."""
    return math.prod(variable.aval.shape)


def jaxprs_of(value) -> list:
    """The jaxprs that a parameter of an equation is or holds."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
