"""Heads on an encoder: MLPs on features, MaskCo's and semantic segmentation's on a feature map."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models.batch_norm import BatchNorm
from maskcl_jax.models.resnet import Block
from maskcl_jax.models.transformer import torch_bias_init

# "torch": nn.Linear's default, uniform within 1/sqrt(fan_in), for kernel and bias.
KERNEL_INIT = {
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "xavier": nn.initializers.xavier_uniform(),
}

SEGMENTERS = ("linear", "decoder")


class MLP(nn.Module):
    """Dense layers fc1, fc2, ..., each with its BatchNorm bn1, bn2, ... and, except for the last, a ReLU.

    Attributes:
        sizes: Widths of the layers' outputs.
        norms: For each layer "affine", "plain" (without scale and bias) or "none".
        biases: Numbers, from 0, of the layers that have a bias.
        init_rule: "torch" or "xavier" (biases 0), the initial values.
        bn_group_size: See `BatchNorm`.
        bn_eps: `BatchNorm.eps`.
        bn_momentum: `BatchNorm.momentum`.
        dtype: Of the computation.
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
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, D) -> (B, sizes[-1])."""
        norm = functools.partial(BatchNorm, group_size=self.bn_group_size, eps=self.bn_eps, momentum=self.bn_momentum)
        last = len(self.sizes) - 1
        for i, (size, kind) in enumerate(zip(self.sizes, self.norms, strict=True)):
            options = {"use_bias": i in self.biases, "kernel_init": KERNEL_INIT[self.init_rule], "dtype": self.dtype}
            if self.init_rule == "torch":
                options["bias_init"] = torch_bias_init(x.shape[-1])
            x = nn.Dense(size, **options, name=f"fc{i + 1}")(x)
            if kind != "none":
                x = norm(affine=kind == "affine", name=f"bn{i + 1}")(x, train=train)
            x = nn.relu(x) if i < last else x
        return x


class MaskHead(nn.Module):
    """MaskCo's mask prediction head: a feature map with a hole -> what an unmasked map would show there.

    Residual bottlenecks 1x1, 3x3, 1x1 with BatchNorm, as a ResNet's, on a map that keeps its shape.

    Attributes:
        blocks: Number of bottlenecks; each carries context one cell further into the hole.
        bn_group_size: See `BatchNorm`.
        dtype: Of the computation.
    """

    blocks: int = 2
    bn_group_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feature_map: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C), C divisible by 4."""
        x, width = feature_map, feature_map.shape[-1] // 4
        options = {"bottleneck": True, "bn_group_size": self.bn_group_size, "dtype": self.dtype}
        for i in range(self.blocks):
            x = Block(width, **options, name=f"block{i}")(x, train=train)
        return x


class Segmenter(nn.Module):
    """Logits of each pixel's class. Both kinds are our choice.

    Attributes:
        kind: "linear": BatchNorm and one linear layer at each position of the map, upsampled bilinearly. "decoder": a
            linear layer to `width`, then twice a 3x3 convolution, BatchNorm, ReLU and upsampling by 2, then the linear
            layer.
        num_classes: Number of logits.
        width: Channels of the decoder.
    """

    kind: str
    num_classes: int
    width: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int], *, train: bool) -> jax.Array:
        """(B, h, w, D), (height, width) in pixels -> logits (B, *size, num_classes) float32."""
        x = BatchNorm(name="bn")(x.astype(jnp.float32), train=train)
        if self.kind == "decoder":
            x = nn.Dense(self.width, name="reduce")(x)
            for i in (1, 2):
                x = nn.Conv(self.width, (3, 3), use_bias=False, name=f"conv{i}")(x)
                x = nn.relu(BatchNorm(name=f"bn{i}")(x, train=train))
                x = upsample(x, (2 * x.shape[1], 2 * x.shape[2]))
        x = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classify")(x)
        return upsample(x, size)


def upsample(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """(B, h, w, C) -> (B, *size, C), bilinear, as torch with align_corners=False."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")
