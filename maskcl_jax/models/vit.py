"""The vision transformer that MAE and its descendants share."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskcl_jax.models.attention import ALL, CLS
from maskcl_jax.models.blocks import Block, through
from maskcl_jax.models.layers import Dense, LayerNorm, separate_qkv, token_init, torch_bias_init, xavier
from maskcl_jax.models.position import sincos_table
from maskcl_jax.ops import masking


class ViT(nn.Module):
    """MAE's encoder: patches with positions, a cls token, blocks, a final norm.

    image_size: (height, width); sides divisible by patch_size. channels: any number. positions: the fixed tables
    "mae" or "mocov3" (see `position`), or "learned" (a parameter, with a row for the cls token, as timm's).
    init_rule: "mae" (one bound for the fused qkv, cls 0.02, patch bias as torch's convolution) or "mocov3" (q, k, v
    apart, cls 1e-6, patch bias 0). remat, scan: see `through`. attention: see `Attention`.
    """

    image_size: tuple[int, int]
    channels: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    positions: str = "mae"
    dtype: Any = jnp.float32
    init_rule: str = "mae"
    remat: str = "none"
    scan: bool = False
    attention: str = "xla"

    def setup(self):
        as_moco = self.init_rule == "mocov3"
        fan_in = self.patch_size**2 * self.channels
        patch_bias = nn.initializers.zeros if as_moco else torch_bias_init(fan_in)
        self.patch_embed = Dense(self.width, kernel_init=xavier, bias_init=patch_bias, dtype=self.dtype)
        cls_init = nn.initializers.normal(1e-6) if as_moco else token_init
        self.cls_token = self.param("cls_token", cls_init, (1, 1, self.width))
        count = self.grid[0] * self.grid[1]
        if self.positions == "learned":
            self.pos_embed = self.param("pos_embed", token_init, (1, 1 + count, self.width))
        qkv_init = separate_qkv if as_moco else xavier
        size = (self.width, self.heads, self.mlp_ratio)
        self.blocks = [Block(*size, self.dtype, qkv_init, self.attention) for _ in range(self.depth)]
        self.norm = LayerNorm(self.dtype)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def embed(self, images, ids=None):
        """Normalised images (B, H, W, C) -> patch tokens with positions: (B, N, D), or of the patches ids (B, n)."""
        patches = masking.patchify(images, self.patch_size)
        tokens = self.patch_embed(patches if ids is None else masking.take(patches, ids))
        if self.positions == "learned":
            table = self.pos_embed[0, 1:]
        else:
            table = jnp.asarray(sincos_table(self.width, self.grid, order=self.positions))
        return tokens + (table if ids is None else table[ids]).astype(tokens.dtype)

    def with_cls(self, tokens):
        """The cls token before patch tokens; in the fixed tables its position is zeros."""
        cls = self.cls_token + (self.pos_embed[:, :1] if self.positions == "learned" else 0.0)
        cls = jnp.broadcast_to(cls.astype(tokens.dtype), (tokens.shape[0], 1, self.width))
        return jnp.concatenate([cls, tokens], axis=1)

    def layers(self, tokens, branches=None):
        """Patch tokens (B, n, D) -> the output of every block, each (B, 1 + n, D), before the final norm.

        branches: (depth, 2, B) factors of the blocks' residual branches (drop path); None: 1.
        """
        x, outputs = self.with_cls(tokens), []
        for i, block in enumerate(self.blocks):
            x = block(x, None if branches is None else branches[i])
            outputs.append(x)
        return outputs

    def last(self, tokens, rows: slice = ALL):
        """Patch tokens (B, n, D) -> the output of the last block, (B, 1 + n, D), before the final norm, or its rows."""
        return through(self.blocks, self.with_cls(tokens), remat=self.remat, scan=self.scan, rows=rows)

    def encode(self, tokens, rows: slice = ALL):
        """Patch tokens (B, n, D), any subset -> (B, 1 + n, D) after the final norm, cls first, or its rows."""
        return self.norm(self.last(tokens, rows))

    def encode_cls(self, tokens):
        """Patch tokens (B, n, D), any subset -> the cls token after the final norm, (B, D)."""
        return self.encode(tokens, CLS)[:, 0]

    def cls_attention(self, tokens, layers: tuple[int, ...] = ()):
        """What the cls token attends to in each of `layers` (default: all blocks): (len(layers), B, n) float32.

        Blocks past the last one needed do not run; of that one only the cls query does.
        """
        wanted = sorted(range(self.depth)[i] for i in layers) if layers else list(range(self.depth))
        x, found = self.with_cls(tokens), []
        for i, block in enumerate(self.blocks[: wanted[-1]]):
            x, attention = block(x, return_cls_attention=True)
            if i in wanted:
                found.append(attention)
        return jnp.stack([*found, self.blocks[wanted[-1]].cls_attention(x)])

    def __call__(self, images):
        """Unmasked forward: (B, 1 + N, D)."""
        return self.encode(self.embed(images))
