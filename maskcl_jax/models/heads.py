"""Heads between an encoder and a contrastive loss."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models.batch_norm import BatchNorm
from maskcl_jax.models.layers import torch_bias_init

# "torch": nn.Linear's default, uniform within 1/sqrt(fan_in), for kernel and bias.
KERNEL_INIT = {
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "xavier": nn.initializers.xavier_uniform(),
}


class MLP(nn.Module):
    """Dense layers fc1, fc2, ..., each with its BatchNorm bn1, bn2, ... and, but for the last, a ReLU.

    sizes: of the layers' outputs. norms: for each layer "affine", "plain" (without scale and bias) or "none".
    biases: which layers have one, as their numbers from 0. init_rule: "torch" or "xavier" (biases 0).
    """

    sizes: tuple[int, ...]
    norms: tuple[str, ...]
    biases: tuple[int, ...] = ()
    init_rule: str = "torch"
    bn_group_size: int = 0
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """(B, D) -> (B, sizes[-1])."""
        norm = {"group_size": self.bn_group_size, "eps": self.bn_eps, "momentum": self.bn_momentum}
        last = len(self.sizes) - 1
        for i, (size, kind) in enumerate(zip(self.sizes, self.norms, strict=True)):
            dense = {"use_bias": i in self.biases, "kernel_init": KERNEL_INIT[self.init_rule], "dtype": self.dtype}
            if self.init_rule == "torch":
                dense["bias_init"] = torch_bias_init(x.shape[-1])
            x = nn.Dense(size, **dense, name=f"fc{i + 1}")(x)
            if kind != "none":
                x = BatchNorm(affine=kind == "affine", **norm, name=f"bn{i + 1}")(x, train=train)
            x = nn.relu(x) if i < last else x
        return x


def init_mlps(mlps: dict[str, tuple[MLP, int]], rng):
    """({name: parameters}, state) of heads {name: (head, input width)}."""
    params, stats = {}, {}
    for (name, (mlp, width)), key in zip(mlps.items(), jax.random.split(rng, len(mlps)), strict=True):
        variables = mlp.init(key, jnp.zeros((2, width)), train=True)
        params[name] = variables["params"]
        if "batch_stats" in variables:
            stats[name] = variables["batch_stats"]
    return params, {"batch_stats": stats} if stats else {}
