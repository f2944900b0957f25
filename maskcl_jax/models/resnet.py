"""ResNets (He et al., CVPR 2016) as torchvision and timm build them, with their paddings and initial values."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models import kernels as fused
from maskcl_jax.models.batch_norm import BatchNorm
from maskcl_jax.models.transformer import REMAT_POLICIES


class ResNetSize(NamedTuple):
    """What a ResNet is built of.

    Attributes:
        stages: Number of blocks of each stage.
        bottleneck: Whether the blocks are bottlenecks.
    """

    stages: tuple[int, ...]
    bottleneck: bool

    @property
    def depth(self) -> int:
        """The number in a ResNet's name: its convolutions and its classifier, shortcuts not counted."""
        return 2 + sum(self.stages) * (3 if self.bottleneck else 2)

    @property
    def is_named(self) -> bool:
        """Whether it is one of `RESNETS`, not only of the same depth."""
        return RESNETS.get(self.depth) == self

    @property
    def name(self) -> str:
        """ "ResNet-50", with the blocks of its stages where they are not those of that name."""
        blocks = "" if self.is_named else f" of {'-'.join(map(str, self.stages))} blocks"
        return f"ResNet-{self.depth}{blocks}"


# By depth; 10 and 14 are for small images.
RESNETS = {
    10: ResNetSize((1, 1, 1, 1), False),
    14: ResNetSize((1, 1, 1, 1), True),
    18: ResNetSize((2, 2, 2, 2), False),
    34: ResNetSize((3, 4, 6, 3), False),
    50: ResNetSize((3, 4, 6, 3), True),
    101: ResNetSize((3, 4, 23, 3), True),
}
STEMS = ("imagenet", "small")

kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the channels, beside a shortcut.

    The stride is in the (first) 3x3. The shortcut has a 1x1 convolution where shape or stride change.

    Attributes:
        width: Channels of the 3x3 convolutions.
        bottleneck: Whether the block has three convolutions.
        stride: By which the sides are divided.
        bn_group_size: See `BatchNorm`.
        dtype: Of the computation.
        kernels: See `conv`.
    """

    width: int
    bottleneck: bool
    stride: int = 1
    bn_group_size: int = 0
    dtype: Any = jnp.float32
    kernels: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, C')."""
        out = 4 * self.width if self.bottleneck else self.width

        def conv_bn(x, name, channels, size, stride=1):
            x = conv(channels, size, stride, self.dtype, kernels=self.kernels, name=f"conv{name}")(x)
            return BatchNorm(group_size=self.bn_group_size, name=f"bn{name}")(x, train=train)

        if self.bottleneck:
            y = nn.relu(conv_bn(x, "1", self.width, 1))
            y = nn.relu(conv_bn(y, "2", self.width, 3, self.stride))
            y = conv_bn(y, "3", out, 1)
        else:
            y = nn.relu(conv_bn(x, "1", self.width, 3, self.stride))
            y = conv_bn(y, "2", out, 3)
        if self.stride > 1 or x.shape[-1] != out:
            x = conv_bn(x, "_shortcut", out, 1, self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Padding is symmetric, as in torch: "SAME" with stride 2 is another function. All stages but the first halve the
    sides.

    Attributes:
        stages: Number of blocks of each stage.
        bottleneck: Whether the blocks are bottlenecks.
        width: Channels of the stem; the stages have 1, 2, 4, ... times as many (bottlenecks four times that at their
            end).
        stem: "imagenet" (7x7 with stride 2, max-pool) or "small" (3x3, no pool; SimCLR appendix B.9, and MoCo's CIFAR
            demo).
        bn_group_size: See `BatchNorm`.
        dtype: Of the computation; parameters are float32.
        remat: What is kept of each block for the backward pass, see `transformer.run_blocks`.
        kernels: See `conv`.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    stem: str = "imagenet"
    bn_group_size: int = 0
    dtype: Any = jnp.float32
    remat: str = "none"
    kernels: str = "plain"

    @property
    def size(self) -> ResNetSize:
        """Stages and kind of blocks."""
        return ResNetSize(self.stages, self.bottleneck)

    @property
    def out_width(self) -> int:
        """Channels of the last stage."""
        return self.width * 2 ** (len(self.stages) - 1) * (4 if self.bottleneck else 1)

    @property
    def stride(self) -> int:
        """Pixels of the image between two neighboring positions of the last stage."""
        return 2 ** (len(self.stages) - 1) * (4 if self.stem == "imagenet" else 1)

    @nn.compact
    def stage_outputs(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Normalized images (B, H, W, C) -> [stem, stage 1, stage 2, ...], each (B, h, w, c)."""
        x = images.astype(self.dtype)
        small = self.stem == "small"
        side, stride = (3, 1) if small else (7, 2)
        x = conv(self.width, side, stride, self.dtype, kernels=self.kernels, name="conv1")(x)
        x = nn.relu(BatchNorm(group_size=self.bn_group_size, name="bn1")(x, train=train))
        if not small:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = [x]
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, static_argnums=(2,), policy=REMAT_POLICIES[self.remat])  # 2: train
        for stage, count in enumerate(self.stages):
            for i in range(count):
                x = block(
                    width=self.width * 2**stage,
                    bottleneck=self.bottleneck,
                    stride=2 if stage and i == 0 else 1,
                    bn_group_size=self.bn_group_size,
                    dtype=self.dtype,
                    kernels=self.kernels,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            outputs.append(x)
        return outputs

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Normalized images (B, H, W, C) -> the last stage, (B, H / stride, W / stride, out_width)."""
        return self.stage_outputs(images, train=train)[-1]


def conv(channels: int, size: int, stride: int, dtype: Any, *, kernels: str, name: str) -> nn.Conv:
    """A convolution without bias, padded as in torch, with torchvision's initial values (He et al. 2015, fan-out).

    Args:
        channels: Of the output.
        size: Sides of the kernel.
        stride: By which the sides are divided.
        dtype: Of the computation.
        kernels: "plain" or "fused" (`kernels.pointwise`, of 1x1 kernels).
        name: Of the parameters.
    """
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        kernel_init=kaiming,
        dtype=dtype,
        name=name,
        conv_general_dilated=fused.pointwise if size == 1 and kernels == "fused" else None,
    )


def average_pool(feature_map: jax.Array) -> jax.Array:
    """(B, h, w, C) -> (B, C) float32: the mean over positions."""
    return feature_map.astype(jnp.float32).mean(axis=(1, 2))
