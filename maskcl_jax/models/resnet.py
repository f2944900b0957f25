"""ResNets 18 to 101 (He et al., CVPR 2016) as torchvision and timm build them, with their paddings and first values."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskcl_jax.models.batch_norm import BatchNorm
from maskcl_jax.models.layers import REMAT_POLICIES

# Depth -> (blocks of each stage, whether they are bottlenecks). 10 and 14 are for small data.
RESNET_DEPTHS = {
    10: ((1, 1, 1, 1), False),
    14: ((1, 1, 1, 1), True),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
STEMS = ("imagenet", "small")

kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the channels, beside a shortcut.

    The stride sits in the (first) 3x3. The shortcut has a 1x1 convolution where shape or stride change.
    """

    width: int
    bottleneck: bool
    stride: int = 1
    bn_group_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """(B, H, W, C) -> (B, H / stride, W / stride, C')."""
        out = 4 * self.width if self.bottleneck else self.width

        def layer(x, name, channels, size, stride=1):
            x = conv(channels, size, stride, self.dtype, name=f"conv{name}")(x)
            return BatchNorm(group_size=self.bn_group_size, name=f"bn{name}")(x, train=train)

        if self.bottleneck:
            y = nn.relu(layer(x, "1", self.width, 1))
            y = nn.relu(layer(y, "2", self.width, 3, self.stride))
            y = layer(y, "3", out, 1)
        else:
            y = nn.relu(layer(x, "1", self.width, 3, self.stride))
            y = layer(y, "2", out, 3)
        if self.stride > 1 or x.shape[-1] != out:
            x = layer(x, "_shortcut", out, 1, self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet without its classifier.

    depth: one of `RESNET_DEPTHS`. width: channels of the stem; the stages have 1, 2, 4, 8 times as many (bottlenecks
    four times that at their end). stem: "imagenet" (7x7 stride 2, max-pool) or "small" (3x3, no pool; SimCLR appendix
    B.9, and MoCo's CIFAR demo). bn_group_size: see `BatchNorm`. remat: "none", or what of each block is kept for the
    backward pass, as in `blocks.through`. Padding is symmetric, as torch pads: "SAME" with stride 2 is another
    function.
    Stage i halves the sides but for the first.
    """

    depth: int
    width: int = 64
    stem: str = "imagenet"
    bn_group_size: int = 0
    dtype: Any = jnp.float32
    remat: str = "none"

    @property
    def out_width(self) -> int:
        """Channels of the last stage."""
        return self.width * (32 if RESNET_DEPTHS[self.depth][1] else 8)

    @property
    def stride(self) -> int:
        """Pixels of the image between two neighbours of the last stage."""
        return 32 if self.stem == "imagenet" else 8

    @nn.compact
    def stages(self, images, *, train: bool):
        """Normalised images (B, H, W, C) -> [stem, stage 1, ..., stage 4], each (B, h, w, c)."""
        x = images.astype(self.dtype)
        small = self.stem == "small"
        x = conv(self.width, 3 if small else 7, 1 if small else 2, self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(group_size=self.bn_group_size, name="bn1")(x, train=train))
        if not small:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = [x]
        counts, bottleneck = RESNET_DEPTHS[self.depth]
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, static_argnums=(2,), policy=REMAT_POLICIES[self.remat])  # 2: train
        for stage, count in enumerate(counts):
            for i in range(count):
                x = block(
                    width=self.width * 2**stage,
                    bottleneck=bottleneck,
                    stride=2 if stage and i == 0 else 1,
                    bn_group_size=self.bn_group_size,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            outputs.append(x)
        return outputs

    def __call__(self, images, *, train: bool):
        """The map of the last stage, (B, H / stride, W / stride, out_width)."""
        return self.stages(images, train=train)[-1]


def conv(channels: int, size: int, stride: int, dtype, *, name: str) -> nn.Conv:
    """A convolution without bias, padded as torch pads, first values as torchvision's (He et al. 2015, fan-out)."""
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        kernel_init=kaiming,
        dtype=dtype,
        name=name,
    )


def average_pool(feature_map):
    """(B, h, w, C) -> (B, C) float32: the mean over positions."""
    return feature_map.astype(jnp.float32).mean(axis=(1, 2))
