"""The decoder of masked autoencoders."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskcl_jax import masking
from maskcl_jax.models.blocks import Block, through
from maskcl_jax.models.layers import Dense, LayerNorm, token_init, xavier
from maskcl_jax.models.position import sincos_table


class Decoder(nn.Module):
    """Encoded visible tokens and mask tokens, put back in place, through blocks, to one vector a patch.

    Source: facebookresearch/mae `models_mae.py`, `forward_decoder`.
    """

    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    out: int  # numbers a patch: patch * patch * channels
    mlp_ratio: float = 4.0
    positions: str = "mae"
    dtype: Any = jnp.float32
    remat: bool = False
    scan: bool = False
    attention: str = "xla"

    def setup(self):
        self.embed = Dense(self.width, kernel_init=xavier, dtype=self.dtype)
        self.mask_token = self.param("mask_token", token_init, (1, 1, self.width))
        block = {"dtype": self.dtype, "attention": self.attention}
        self.blocks = [Block(self.width, self.heads, self.mlp_ratio, **block) for _ in range(self.depth)]
        self.norm = LayerNorm(self.dtype)
        self.pred = Dense(self.out, kernel_init=xavier, dtype=self.dtype)

    def __call__(self, latent, restore):
        """latent (B, 1 + n, D) with cls first, restore (B, N) -> (B, N, out) for every patch, cls dropped."""
        return self.pred(self.tokens(latent, restore))

    def tokens(self, latent, restore):
        """The same before the last layer: (B, N, width)."""
        x = self.embed(latent)
        b, count = restore.shape
        hidden = jnp.broadcast_to(self.mask_token.astype(x.dtype), (b, count - x.shape[1] + 1, self.width))
        patches = masking.take(jnp.concatenate([x[:, 1:], hidden], axis=1), restore)
        patches = patches + jnp.asarray(sincos_table(self.width, self.grid, order=self.positions), x.dtype)
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        return self.norm(through(self.blocks, x, remat=self.remat, scan=self.scan))[:, 1:]
