"""The mask prediction head: a map with a hole in it -> what an unmasked map would show there."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskcl_jax.models.resnet import Block


class MaskHead(nn.Module):
    """Residual bottlenecks 1x1, 3x3, 1x1 with BatchNorm, as a ResNet's, on a map that keeps its shape.

    blocks: each carries context one cell further into the hole. bn_group_size: see `BatchNorm`.
    """

    blocks: int = 2
    bn_group_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feature_map, *, train: bool):
        """(B, H, W, C) -> (B, H, W, C), C divisible by 4."""
        x, width = feature_map, feature_map.shape[-1] // 4
        for i in range(self.blocks):
            x = Block(width, bottleneck=True, bn_group_size=self.bn_group_size, dtype=self.dtype, name=f"block{i}")(
                x, train=train
            )
        return x
