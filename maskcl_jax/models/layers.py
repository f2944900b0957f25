"""The layers that transformers are made of, plain or fused, with their initial values."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models import kernels as fused
from maskcl_jax.models.kernels import LAYER_NORM_EPS

xavier = nn.initializers.xavier_uniform()  # on a fused (D, 3D) kernel: the bound sqrt(6 / 4D) of MAE's fused qkv
token_init = nn.initializers.normal(0.02)


def separate_qkv(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Xavier uniform for q, k and v each on its own, (D, D), on the fused (D, 3D) kernel.

    Source: facebookresearch/moco-v3 `vits.py`.
    """
    bound = (6 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for the bias of a layer: uniform within 1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def dense(features: int, *, kernels: str, **options: Any) -> nn.Dense:
    """A linear layer; "fused" has the gradient of `kernels.matmul`.

    Args:
      features: Width of the output.
      kernels: "plain" or "fused".
      **options: Other attributes of `nn.Dense`.
    """
    return nn.Dense(features, dot_general=fused.dot_general if kernels == "fused" else None, **options)


def layer_norm(dtype: Any, *, kernels: str) -> nn.Module:
    """LayerNorm with eps 1e-6, computed in float32, the variance in two passes: one pass loses small ones.

    Args:
      dtype: Of the output.
      kernels: "plain" or "fused" (`kernels.LayerNorm`).
    """
    if kernels == "fused":
        return fused.LayerNorm(dtype=dtype)
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False, dtype=dtype)


def gelu(x: jax.Array, *, kernels: str) -> jax.Array:
    """Exact GELU, x Phi(x), as torch has it; "fused" is `kernels.gelu`."""
    return fused.gelu(x) if kernels == "fused" else jax.nn.gelu(x, approximate=False)


class Mlp(nn.Module):
    """Linear, exact GELU, linear.

    Attributes:
      width: Width of input and output.
      hidden: Width between the two layers.
      dtype: Of the computation.
      kernels: "plain" or "fused".
    """

    width: int
    hidden: int
    dtype: Any = jnp.float32
    kernels: str = "plain"

    def setup(self):
        options = {"kernel_init": xavier, "dtype": self.dtype, "kernels": self.kernels}
        self.fc1 = dense(self.hidden, **options)
        self.fc2 = dense(self.width, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        return self.fc2(gelu(self.fc1(x), kernels=self.kernels))


def save_weight_products(primitive, *arguments, **parameters) -> bool:
    """Whether an operation is a product with a layer's weights: most of the work, and a small part of the memory."""
    if primitive.name == "conv_general_dilated":
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **parameters)


# `config.remat` -> what of a block is kept for the backward pass besides its input; the rest is computed again.
REMAT_POLICIES = {"blocks": None, "cheap": save_weight_products}
