"""Heads between an encoder and a contrastive loss."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskcl_jax.models.batch_norm import BatchNorm


class Projector(nn.Module):
    """Linear, BatchNorm, ReLU, Linear, BatchNorm without affine; no biases (Sherrylone/ccMIM `models_ccmim.py`)."""

    hidden: int
    out: int
    bn_group_size: int = 0
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """(B, D) -> (B, out)."""
        norm = {"group_size": self.bn_group_size, "eps": self.bn_eps, "momentum": self.bn_momentum}
        dense = {"use_bias": False, "dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        x = nn.Dense(self.hidden, **dense, name="fc1")(x)
        x = nn.relu(BatchNorm(**norm, name="bn1")(x, train=train))
        x = nn.Dense(self.out, **dense, name="fc2")(x)
        return BatchNorm(affine=False, **norm, name="bn2")(x, train=train)
