"""Heads for semantic segmentation on the feature map of a frozen encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models.batch_norm import BatchNorm

HEADS = ("linear", "decoder")


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
