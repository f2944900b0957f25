"""The vision transformer that MAE and its descendants share: encoder, decoder, position tables."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.models.transformer import (
    ALL,
    CLS,
    Block,
    dense,
    layer_norm,
    run_blocks,
    separate_qkv,
    token_init,
    torch_bias_init,
    xavier,
)
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
        positions: The fixed tables "mae" or "mocov3" (see `sincos_table`), or "learned" (a parameter, with a row for
            the cls token, as timm's).
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

    def setup(self) -> None:
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
            assert mask_token is not None
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
            (number of layers, B, n) float32, the layers in ascending order; see `cls_weights`.
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


class Decoder(nn.Module):
    """Encoded visible tokens and mask tokens, each with its position, through blocks, to one vector per patch.

    Where only masked patches are wanted, the last block computes no others. Without that a step of MAE has 2.2 % more
    FLOPs (ViT-S/16, 224 pixels), one of CMAE 2.0 %, of ccMIM 1.6 %; on a CPU with the preset embedded, whose decoder is
    one block, MAE's takes 10 % longer, ccMIM's 5 %.

    Attributes:
        grid: (rows, columns) of patches.
        width: Width of the tokens.
        depth: Number of blocks.
        heads: Heads of each block.
        out: Width of the output, for pixels patch * patch * channels.
        mlp_ratio: Hidden width of each MLP over `width`.
        positions: "mae" or "mocov3", the order of the position table (see `sincos_table`).
        dtype: Of the computation; parameters are float32.
        remat: See `run_blocks`.
        scan: See `run_blocks`.
        attention: See `Attention`.
        kernels: "plain" or "fused", see `kernels`.

    Source: facebookresearch/mae `models_mae.py`, `forward_decoder`.
    """

    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    out: int
    mlp_ratio: float = 4.0
    positions: str = "mae"
    dtype: Any = jnp.float32
    remat: str = "none"
    scan: bool = False
    attention: str = "xla"
    kernels: str = "plain"

    def setup(self) -> None:
        options = {"dtype": self.dtype, "kernels": self.kernels}
        self.embed = dense(self.width, kernel_init=xavier, **options)
        self.mask_token = self.param("mask_token", token_init, (1, 1, self.width))
        size = (self.width, self.heads, self.mlp_ratio)
        self.blocks = [Block(*size, attention=self.attention, **options) for _ in range(self.depth)]
        self.norm = layer_norm(**options)
        self.pred = dense(self.out, kernel_init=xavier, **options)

    def __call__(
        self, latent: jax.Array, visible: jax.Array, masked: jax.Array, *, only_masked: bool = False
    ) -> jax.Array:
        """Predicts a vector for each patch.

        Args:
            latent: Encoded visible tokens (B, 1 + n, D), the cls token first.
            visible: Their patch indices (B, n).
            masked: Indices of all other patches (B, m).
            only_masked: Whether only the masked patches are wanted.

        Returns:
            (B, n + m, out), the visible patches first; or (B, m, out).
        """
        return self.pred(self.tokens(latent, visible, masked, only_masked=only_masked))

    def tokens(
        self, latent: jax.Array, visible: jax.Array, masked: jax.Array, *, only_masked: bool = False
    ) -> jax.Array:
        """As `__call__`, but before the last layer: (B, n + m, width), or (B, m, width)."""
        x = self.embed(latent)
        mask_tokens = jnp.broadcast_to(self.mask_token.astype(x.dtype), (*masked.shape, self.width))
        # Blocks do not depend on the order of a sequence: positions tell the patches apart, and none need be moved.
        table = jnp.asarray(sincos_table(self.width, self.grid, order=self.positions), x.dtype)
        patches = jnp.concatenate([x[:, 1:], mask_tokens], axis=1) + table[jnp.concatenate([visible, masked], axis=1)]
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        rows = slice(1 + visible.shape[1] if only_masked else 1, None)
        return self.norm(run_blocks(self.blocks, x, remat=self.remat, scan=self.scan, rows=rows))


def sincos_table(width: int, grid: tuple[int, int], *, order: str = "mae") -> np.ndarray:
    """Sine and cosine of one coordinate, then of the other, at frequencies 10000^(-i/(width/4)).

    Args:
        width: Width of the tokens, divisible by 4.
        grid: (rows, columns) of patches.
        order: What the first half of the channels encodes. "mae": the column (facebookresearch/mae
            `util/pos_embed.py`); "mocov3": the row (facebookresearch/moco-v3 `vits.py`).

    Returns:
        (rows*columns, width) float32. The cls token's row is zeros and not part of the table.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    halves = {"mae": (columns, rows), "mocov3": (rows, columns)}[order]
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = [half.reshape(-1, 1) * omega for half in halves]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def resize_position_table(table: np.ndarray, grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
    """Resizes a position table as torch's bicubic interpolation does; the cls row is copied.

    That is: align_corners false, no antialiasing, coefficient -0.75, edges repeated. Common resizers differ in one of
    these and give other tables.

    Args:
        table: (1 + rows*columns, D), the cls row first.
        grid: Its (rows, columns).
        new_grid: Those of the result.

    Returns:
        (1 + new rows * new columns, D) float32.

    Source: facebookresearch/mae `interpolate_pos_embed`.
    """
    table = np.asarray(table, np.float64)
    patches = table[1:].reshape(*grid, -1)
    down, across = (cubic_matrix(old, new) for old, new in zip(grid, new_grid, strict=True))
    resized = np.einsum("ri,cj,ijd->rcd", down, across, patches).reshape(-1, table.shape[1])
    return np.concatenate([table[:1], resized]).astype(np.float32)


def cubic_matrix(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """(new, old) weights of cubic convolution along one axis."""
    source = (np.arange(new) + 0.5) * old / new - 0.5
    base = np.floor(source).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(source - (base + tap))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        where = np.clip(base + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), where), np.where(distance <= 1, near, far))
    return weights
