"""The decoder of masked autoencoders."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskcl_jax.models.attention import PATCHES
from maskcl_jax.models.blocks import Block, through
from maskcl_jax.models.layers import Dense, LayerNorm, token_init, xavier
from maskcl_jax.models.position import sincos_table


class Decoder(nn.Module):
    """Encoded visible tokens and mask tokens, each with its position, through blocks, to one vector a patch.

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
    remat: str = "none"
    scan: bool = False
    attention: str = "xla"

    def setup(self):
        self.embed = Dense(self.width, kernel_init=xavier, dtype=self.dtype)
        self.mask_token = self.param("mask_token", token_init, (1, 1, self.width))
        block = {"dtype": self.dtype, "attention": self.attention}
        self.blocks = [Block(self.width, self.heads, self.mlp_ratio, **block) for _ in range(self.depth)]
        self.norm = LayerNorm(self.dtype)
        self.pred = Dense(self.out, kernel_init=xavier, dtype=self.dtype)

    def __call__(self, latent, visible, masked, *, only_masked: bool = False):
        """latent (B, 1 + n, D) with cls first, patch numbers visible (B, n) and masked (B, m) -> (B, n + m, out).

        In the order of the sequence: visible patches first. only_masked: (B, m, out), the last ones of these.
        """
        return self.pred(self.tokens(latent, visible, masked, slice(1 + visible.shape[1] * only_masked, None)))

    def tokens(self, latent, visible, masked, rows: slice = PATCHES):
        """The same before the last layer: (B, n + m, width), or other rows of [cls, visible, masked]."""
        x = self.embed(latent)
        hidden = jnp.broadcast_to(self.mask_token.astype(x.dtype), (*masked.shape, self.width))
        # The blocks do not care for the order of a sequence: positions tell the patches apart, and none need be moved.
        table = jnp.asarray(sincos_table(self.width, self.grid, order=self.positions), x.dtype)
        patches = jnp.concatenate([x[:, 1:], hidden], axis=1) + table[jnp.concatenate([visible, masked], axis=1)]
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        return self.norm(through(self.blocks, x, remat=self.remat, scan=self.scan, rows=rows))
