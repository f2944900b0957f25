"""The layers that transformers are made of, with their initial values: Dense, LayerNorm, GELU, MLP."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYER_NORM_EPS = 1e-6

xavier = nn.initializers.xavier_uniform()  # on a fused (D, 3D) kernel: the bound sqrt(6 / 4D) of MAE's fused qkv
token_init = nn.initializers.normal(0.02)


def separate_qkv(key, shape, dtype=jnp.float32):
    """Xavier uniform for q, k and v each on its own, (D, D), on the fused (D, 3D) kernel (facebookresearch/moco-v3)."""
    bound = (6 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def torch_bias_init(fan_in: int):
    """PyTorch's default for the bias of a layer: uniform within 1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def moments(x):
    """x in float32, its mean over the last dimension, and one over its deviation, the variance taken in two passes."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return x, mean, jax.lax.rsqrt(variance + LAYER_NORM_EPS)


@jax.custom_vjp
def normalized(x, scale, bias):
    """LayerNorm over the last dimension, float32.

    With a gradient of its own, which keeps x and scale alone: the one that JAX derives takes a CPU longer.
    """
    x, mean, rate = moments(x)
    return (x - mean) * rate * scale + bias


def normalized_backward(kept, gradient):
    """The gradients of x, scale and bias."""
    x, scale = kept
    wide, mean, rate = moments(x)
    unit, inner = (wide - mean) * rate, gradient * scale
    along = jnp.mean(inner * unit, axis=-1, keepdims=True)
    outer = rate * (inner - inner.mean(axis=-1, keepdims=True) - unit * along)
    others = tuple(range(x.ndim - 1))
    return outer.astype(x.dtype), jnp.sum(gradient * unit, axis=others), jnp.sum(gradient, axis=others)


normalized.defvjp(lambda x, scale, bias: (normalized(x, scale, bias), (x, scale)), normalized_backward)


class LayerNorm(nn.Module):
    """LayerNorm, eps 1e-6, in float32. flax's own has its variance in one pass, and loses small ones, or is slow."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(..., D) -> (..., D) of `dtype`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalized(x, scale, bias).astype(self.dtype)


@jax.custom_vjp
def product(x, kernel):
    """(..., D) @ (D, E).

    The kernel's gradient is taken as it lies, (D, E): JAX takes its transpose, whose operands a CPU first copies.
    """
    return x @ kernel


def product_backward(kept, gradient):
    """The gradients of x and the kernel."""
    x, kernel = kept
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=of_flat_rows, default=of_rows)
    return gradient @ kernel.T, of_kernel


def of_rows(x, gradient):
    """The sum over all rows of x (..., D) times gradient (..., E): (D, E)."""
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())))


def of_flat_rows(x, gradient):
    """The same: with one dimension of rows a CPU need not transpose x first. Elsewhere making one may cost a copy."""
    return x.reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])


# Not `product` itself in the forward pass: a policy of what to keep (`remat`) knows the product of matrices alone.
product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), product_backward)
# What else Dense asks of it, dimensions and precision, is what it does anyhow.
Dense = functools.partial(nn.Dense, dot_general=lambda x, kernel, *_, **__: product(x, kernel))


@jax.custom_vjp
def gelu(x):
    """Exact GELU, x Phi(x), as torch has it. Only x is kept for the backward pass; the inside is float32."""
    wide = x.astype(jnp.float32)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def gelu_backward(x, gradient):
    """Phi(x) + x phi(x), times the gradient."""
    # Without the barrier XLA finds Phi(x) in the forward pass and keeps it, in float32, from there.
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return (((normal_cdf(wide) + wide * density) * gradient).astype(x.dtype),)


def normal_cdf(x):
    """Phi, by erf as torch has it."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(lambda x: (gelu(x), x), gelu_backward)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    width: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(B, T, D) -> (B, T, D)."""
        x = Dense(self.hidden, kernel_init=xavier, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        return Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="fc2")(x)
