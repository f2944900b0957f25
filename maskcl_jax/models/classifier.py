"""Encoders with a classifier on top, as they are fine-tuned."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models.resnet import ResNet, average_pool
from maskcl_jax.models.transformer import layer_norm
from maskcl_jax.models.vit import ViT

head_init = nn.initializers.truncated_normal(2e-5)  # facebookresearch/mae `main_finetune.py`


class ViTClassifier(nn.Module):
    """A ViT, its tokens pooled, a linear head.

    Attributes:
        encoder: The ViT.
        num_classes: Number of logits.
        pool: "mean": `fc_norm` of the mean of the patch tokens of the last block, the encoder's own norm unused; "cls":
            the cls token after the encoder's norm.

    Source: facebookresearch/mae `models_vit.py`.
    """

    encoder: ViT
    num_classes: int
    pool: str = "mean"

    def setup(self) -> None:
        if self.pool == "mean":
            self.fc_norm = layer_norm(jnp.float32, kernels=self.encoder.kernels)
        self.head = nn.Dense(self.num_classes, kernel_init=head_init)

    def __call__(self, images: jax.Array, *, train: bool, branches: jax.Array | None = None) -> jax.Array:
        """Normalized images (B, H, W, C) -> logits (B, num_classes) float32. branches: see `ViT.layers`."""
        tokens = self.encoder.layers(self.encoder.embed(images), branches)[-1]
        if self.pool == "mean":
            return self.head(self.fc_norm(tokens[:, 1:].astype(jnp.float32).mean(axis=1)))
        return self.head(self.encoder.norm(tokens)[:, 0].astype(jnp.float32))


class ResNetClassifier(nn.Module):
    """A ResNet, its last feature map averaged, a linear head."""

    encoder: ResNet
    num_classes: int

    def setup(self) -> None:
        self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))

    def __call__(self, images: jax.Array, *, train: bool, branches: None = None) -> jax.Array:
        """Normalized images (B, H, W, C) -> logits (B, num_classes) float32. branches: a ResNet has none."""
        return self.head(average_pool(self.encoder(images, train=train)))


def drop_path(rng: jax.Array, rate: float, *, depth: int, batch: int) -> jax.Array:
    """Draws which residual branches are dropped.

    Args:
        rng: A key.
        rate: Of the last block; branches of block i drop with probability rate * i / (depth - 1), each on its own, and
            for each image on its own.
        depth: Number of blocks.
        batch: Number of images B.

    Returns:
        (depth, 2, B) factors of the residual branches: 0, or 1 / the probability to be kept.

    Source: timm `DropPath`.
    """
    keep = 1.0 - jnp.linspace(0.0, rate, depth)[:, None, None]
    return jax.random.bernoulli(rng, keep, (depth, 2, batch)) / keep
