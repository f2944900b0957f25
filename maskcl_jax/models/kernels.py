"""The hand-written gradients of layers, and the switch that chooses them: `config.kernels`.

"plain" is what flax and `jax.nn` offer; "fused" is this file, whose gradients keep less and copy less. Both compute the
same values and gradients but for rounding, and have the same parameters. Of "fused" only 1x1 convolutions have forward
mode (`jax.jvp`), "plain" has it everywhere.

A gain is how much longer a training step takes on a CPU without this one, with all others: CPU time, 2 cores,
float32, November 2026, MAE and ccMIM on 64 patches (preset embedded, 4 blocks of width 96):

    python tests/benchmarks/kernels.py --config=configs/mae.py:embedded

All together: 53 to 56 % (MAE), 37 to 40 % (ccMIM); MAE with 12 such blocks 128 to 136 %, of which LayerNorm's gradient
alone 23 %. On GPU and TPU nothing is measured yet.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

KERNELS = ("auto", "plain", "fused")
LAYER_NORM_EPS = 1e-6


def resolve(kernels: str, platform: str = "") -> str:
    """Decides what "auto" leaves open: "fused" on a CPU, where it was measured, and "plain" elsewhere.

    Args:
        kernels: One of `KERNELS`.
        platform: Where the networks will run; "" is JAX's default backend.

    Returns:
        "plain" or "fused".
    """
    if kernels != "auto":
        return kernels
    return "fused" if (platform or jax.default_backend()) == "cpu" else "plain"


# --- Attention ------------------------------------------------------------------------------------------------


def dot_product_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The counterpart of `jax.nn.dot_product_attention`.

    Args:
        q: Queries (B, Q, heads, head width).
        k: Keys (B, K, heads, head width).
        v: Values, of the shape of the keys.

    Returns:
        softmax(q k^T / sqrt(head width)) v, (B, Q, heads, head width), of the dtype of v.
    """
    # Products of whole matrices: an einsum from and to (B, T, heads, width) costs a CPU six times that.
    return heads_first(attention(heads_first(q), heads_first(k), heads_first(v)))


def heads_first(x: jax.Array) -> jax.Array:
    """(B, T, heads, head width) -> (B, heads, T, head width), and back."""
    return jnp.swapaxes(x, 1, 2)


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of (B, heads, T, head width) arrays; the softmax is in float32. Gain: 7 % (MAE, ccMIM).

    The weights are divided by their sum after the product with v, and kept undivided, in the dtype of v: the gradient
    that JAX derives keeps them twice, in float32, and multiplies in it.
    """
    return attention_forward(q, k, v)[0]


def attention_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The output, and what its gradient needs."""
    q = scale_queries(q)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = (jnp.matmul(weights, v, preferred_element_type=jnp.float32) / total).astype(v.dtype)
    return out, (q, k, v, weights, total)


def attention_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    """The gradients of q, k and v."""
    q, k, v, weights, total = residuals
    gradient = (gradient / total).astype(v.dtype)
    weights_gradient = jnp.einsum("bhqd,bhkd->bhqk", gradient, v, preferred_element_type=jnp.float32)
    mean = jnp.sum(weights * weights_gradient, axis=-1, keepdims=True) / total
    scores_gradient = (weights * (weights_gradient - mean)).astype(v.dtype)
    q_gradient = scale_queries(scores_gradient @ k)
    k_gradient = jnp.einsum("bhqk,bhqd->bhkd", scores_gradient, q)
    v_gradient = jnp.einsum("bhqk,bhqd->bhkd", weights, gradient)
    return q_gradient, k_gradient, v_gradient


attention.defvjp(attention_forward, attention_backward)


def scale_queries(q: jax.Array) -> jax.Array:
    """q / sqrt(head width), the last dimension."""
    return q * q.shape[-1] ** -0.5


# --- LayerNorm ------------------------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """The counterpart of `nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)`, computed in float32.

    Attributes:
        dtype: Of the output.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D)."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalize(x, scale, bias).astype(self.dtype)


@jax.custom_vjp
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last dimension, float32. Gain: 7 % (MAE), 5 % (ccMIM).

    Its gradient keeps x and scale and computes the moments again, where the one that JAX derives keeps float32 arrays
    of the size of x.
    """
    x, mean, inverse_std = moments(x)
    return (x - mean) * inverse_std * scale + bias


def normalize_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, ...]:
    """The gradients of x, scale and bias."""
    x, scale = residuals
    x32, mean, inverse_std = moments(x)
    unit, inner = (x32 - mean) * inverse_std, gradient * scale
    projection = jnp.mean(inner * unit, axis=-1, keepdims=True)
    x_gradient = inverse_std * (inner - inner.mean(axis=-1, keepdims=True) - unit * projection)
    others = tuple(range(x.ndim - 1))
    return x_gradient.astype(x.dtype), jnp.sum(gradient * unit, axis=others), jnp.sum(gradient, axis=others)


normalize.defvjp(lambda x, scale, bias: (normalize(x, scale, bias), (x, scale)), normalize_backward)


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x in float32, its mean over the last dimension, and 1 / std. Two passes: one pass loses small variances."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return x, mean, jax.lax.rsqrt(variance + LAYER_NORM_EPS)


# --- Dense ----------------------------------------------------------------------------------------------------


def dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """What `nn.Dense` takes as its `dot_general`: `matmul`. Dimensions and precision are the defaults of `nn.Dense`."""
    return matmul(x, kernel)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., D) @ (D, E). Gain: 12 % (MAE), 7 % (ccMIM).

    The kernel's gradient is computed as it lies in memory, (D, E): JAX computes its transpose, whose operands a CPU
    first copies.
    """
    return x @ kernel


def matmul_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and the kernel."""
    x, kernel = residuals
    kernel_gradient = jax.lax.platform_dependent(x, gradient, cpu=sum_of_flat_rows, default=sum_of_rows)
    return gradient @ kernel.T, kernel_gradient


def sum_of_rows(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """x (..., D), gradient (..., E) -> (D, E), the sum of the outer products of their rows."""
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())))


def sum_of_flat_rows(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """`sum_of_rows` of flattened arrays: a CPU need not transpose x first. Elsewhere flattening may cost a copy."""
    return x.reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])


# Not `matmul` itself in the forward pass: the policies of `remat` know matrix products, not custom gradients.
matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), matmul_backward)


# --- GELU -----------------------------------------------------------------------------------------------------


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The counterpart of `jax.nn.gelu(x, approximate=False)`: x Phi(x), computed in float32.

    Gain: 10 % (MAE), 8 % (ccMIM). Only x is kept for the backward pass.
    """
    x32 = x.astype(jnp.float32)
    return (x32 * normal_cdf(x32)).astype(x.dtype)


def gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    """(Phi(x) + x phi(x)) times the gradient."""
    # Without the barrier XLA finds Phi(x) in the forward pass and keeps it, in float32, from there.
    x32 = jax.lax.optimization_barrier(x).astype(jnp.float32)
    density = jnp.exp(-0.5 * x32**2) * (2 * jnp.pi) ** -0.5
    return (((normal_cdf(x32) + x32 * density) * gradient).astype(x.dtype),)


def normal_cdf(x: jax.Array) -> jax.Array:
    """Phi(x)."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(lambda x: (gelu(x), x), gelu_backward)


# --- 1x1 convolutions --------------------------------------------------------------------------------------------


def pointwise(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], *_: Any, **__: Any) -> jax.Array:
    """What `nn.Conv` takes as its `conv_general_dilated`: `convolve_pointwise`, for 1x1 kernels without padding."""
    return convolve_pointwise(strides, x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def convolve_pointwise(strides: tuple[int, int], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (B, H, W, C) * kernel (1, 1, C, D) -> (B, H / stride, W / stride, D).

    The kernel's gradient is a product of matrices. Gain: of the gradient 154, 125 and 185 instead of 17, 23 and 21 ms
    for 32 maps of 32 x 32 and 64 to 256, 256 to 64, and with stride 2 256 to 512 channels; of the whole gradient
    of a ResNet-14 of bottlenecks 9 %.
    """
    return convolve(strides, x, kernel)


@convolve_pointwise.defjvp
def pointwise_derivative(
    strides: tuple[int, int], primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The output, and its derivative, whose transposition is the gradient."""
    (x, kernel), (dx, dkernel) = primals, tangents
    return convolve(strides, x, kernel), convolve(strides, dx, kernel) + multiply(strides, x, dkernel)


def convolve(strides: tuple[int, int], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution without padding."""
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def multiply(strides: tuple[int, int], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """What `convolve` computes for a kernel (1, 1, C, D), as one product of matrices (pixels, C) @ (C, D)."""
    seen = x[:, :: strides[0], :: strides[1]]
    return (seen.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*seen.shape[:3], kernel.shape[-1])
