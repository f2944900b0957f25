"""The vision transformer that MAE and its descendants share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models.attention import ALL, CLS
from maskcl_jax.models.blocks import Block, run_blocks
from maskcl_jax.models.layers import dense, layer_norm, separate_qkv, token_init, torch_bias_init, xavier
from maskcl_jax.models.position import sincos_table
from maskcl_jax.ops import masking


class ViT(nn.Module):
    """MAE's encoder: patches with positions, a cls token, blocks, a final norm.

    Attributes:
      image_size: (height, width) in pixels, divisible by `patch_size`.
      channels: Channels of the images, any number.
      patch_size: Side of a patch in pixels.
      width: Width of the tokens.
      depth: Number of blocks.
      heads: Heads of each block.
      mlp_ratio: Hidden width of each MLP over `width`.
      positions: The fixed tables "mae" or "mocov3" (see `position`), or "learned" (a parameter, with a row for the cls
        token, as timm's).
      dtype: Of the computation; parameters are float32.
      init_rule: "mae" (one bound for the fused qkv, cls 0.02, patch bias as torch's convolution) or "mocov3" (q, k, v
        apart, cls 1e-6, patch bias 0).
      remat: See `run_blocks`.
      scan: See `run_blocks`.
      attention: See `Attention`.
      kernels: "plain" or "fused", see `kernels`.
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
    kernels: str = "plain"

    def setup(self):
        as_moco = self.init_rule == "mocov3"
        fan_in = self.patch_size**2 * self.channels
        self.patch_embed = dense(
            self.width,
            kernel_init=xavier,
            bias_init=nn.initializers.zeros if as_moco else torch_bias_init(fan_in),
            dtype=self.dtype,
            kernels=self.kernels,
        )
        cls_init = nn.initializers.normal(1e-6) if as_moco else token_init
        self.cls_token = self.param("cls_token", cls_init, (1, 1, self.width))
        if self.positions == "learned":
            num_patches = self.grid[0] * self.grid[1]
            self.pos_embed = self.param("pos_embed", token_init, (1, 1 + num_patches, self.width))
        qkv_init = separate_qkv if as_moco else xavier
        size = (self.width, self.heads, self.mlp_ratio)
        options = {"dtype": self.dtype, "attention": self.attention, "kernels": self.kernels}
        self.blocks = [Block(*size, qkv_init=qkv_init, **options) for _ in range(self.depth)]
        self.norm = layer_norm(self.dtype, kernels=self.kernels)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def embed(
        self,
        images: jax.Array,
        ids: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        mask_token: jax.Array | None = None,
    ) -> jax.Array:
        """Projects patches and adds their positions.

        Args:
          images: Normalized images (B, H, W, C).
          ids: Indices of the patches to embed, (B, n); None: all N.
          mask: (B, N), 1 or True where a patch is replaced by `mask_token`, before its position is added.
          mask_token: (D,).

        Returns:
          Patch tokens, (B, n, D) or (B, N, D).
        """
        patches = masking.patchify(images, self.patch_size)
        tokens = self.patch_embed(patches if ids is None else masking.take(patches, ids))
        if mask is not None:
            tokens = jnp.where(mask[:, :, None] > 0, mask_token.astype(tokens.dtype), tokens)
        if self.positions == "learned":
            table = self.pos_embed[0, 1:]
        else:
            table = jnp.asarray(sincos_table(self.width, self.grid, order=self.positions))
        return tokens + (table if ids is None else table[ids]).astype(tokens.dtype)

    def prepend_cls(self, tokens: jax.Array) -> jax.Array:
        """Patch tokens (B, n, D) -> (B, 1 + n, D), the cls token first; in the fixed tables its position is zeros."""
        cls = self.cls_token + (self.pos_embed[:, :1] if self.positions == "learned" else 0.0)
        cls = jnp.broadcast_to(cls.astype(tokens.dtype), (tokens.shape[0], 1, self.width))
        return jnp.concatenate([cls, tokens], axis=1)

    def encode(self, tokens: jax.Array, *, rows: slice = ALL, final_norm: bool = True) -> jax.Array:
        """Runs the blocks and the final norm.

        Args:
          tokens: Any subset of the patch tokens, (B, n, D).
          rows: Positions of [cls, patches] whose output is wanted; the last block computes no others.
          final_norm: Whether to apply the final norm.

        Returns:
          (B, rows of 1 + n, D), the cls token first.
        """
        x = run_blocks(self.blocks, self.prepend_cls(tokens), remat=self.remat, scan=self.scan, rows=rows)
        return self.norm(x) if final_norm else x

    def encode_cls(self, tokens: jax.Array) -> jax.Array:
        """Any subset of the patch tokens, (B, n, D) -> the cls token after the final norm, (B, D).

        Without the slice of rows a step of MoCo v3 has 7.5 % more FLOPs (ViT-S/16, 224 pixels), and takes a CPU 25 %
        longer with the 4 blocks of the preset embedded; one of ccMIM 0.9 % and 5 %.
        """
        return self.encode(tokens, rows=CLS)[:, 0]

    def layers(self, tokens: jax.Array, branches: jax.Array | None = None) -> list[jax.Array]:
        """Runs the blocks and keeps the output of each.

        Args:
          tokens: Patch tokens (B, n, D).
          branches: (depth, 2, B) factors of the blocks' residual branches (drop path); None: 1.

        Returns:
          The output of every block, each (B, 1 + n, D), before the final norm.
        """
        x, outputs = self.prepend_cls(tokens), []
        for i, block in enumerate(self.blocks):
            x = block(x, None if branches is None else branches[i])
            outputs.append(x)
        return outputs

    def cls_attention(self, tokens: jax.Array, layers: tuple[int, ...] = ()) -> jax.Array:
        """What the cls token attends to. Blocks past the last one that is needed do not run.

        Args:
          tokens: Patch tokens (B, n, D).
          layers: Indices of blocks, from 0, or from -1 for the last; () is all.

        Returns:
          (number of layers, B, n) float32, the layers in ascending order; see `attention.cls_weights`.
        """
        wanted = sorted(range(self.depth)[i] for i in layers) if layers else list(range(self.depth))
        x, weights = self.prepend_cls(tokens), []
        for i, block in enumerate(self.blocks[: wanted[-1]]):
            x, attention = block.with_cls_attention(x)
            if i in wanted:
                weights.append(attention)
        return jnp.stack([*weights, self.blocks[wanted[-1]].cls_attention(x)])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalized images (B, H, W, C), no patch masked -> (B, 1 + N, D) after the final norm, cls first."""
        return self.encode(self.embed(images))
