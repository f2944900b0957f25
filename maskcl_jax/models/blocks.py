"""Transformer blocks, and sequences of them."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models import kernels as fused
from maskcl_jax.models.attention import ALL, Attention
from maskcl_jax.models.layers import REMAT_POLICIES, Mlp, layer_norm, xavier


class Block(nn.Module):
    """Pre-norm transformer block without dropout or LayerScale.

    Attributes:
      width: Width of the tokens.
      heads: Heads of the attention.
      mlp_ratio: Hidden width of the MLP over `width`.
      dtype: Of the computation.
      qkv_init: Initial values of the fused qkv kernel.
      attention: See `Attention`.
      kernels: "plain" or "fused".
    """

    width: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    qkv_init: nn.initializers.Initializer = xavier
    attention: str = "xla"
    kernels: str = "plain"

    def setup(self):
        self.norm1 = layer_norm(self.dtype, kernels=self.kernels)
        self.attn = Attention(self.width, self.heads, self.dtype, self.qkv_init, self.attention, self.kernels)
        self.norm2 = layer_norm(self.dtype, kernels=self.kernels)
        self.mlp = Mlp(self.width, int(self.width * self.mlp_ratio), self.dtype, self.kernels)

    def __call__(self, x: jax.Array, branches: jax.Array | None = None, *, rows: slice = ALL) -> jax.Array:
        """Attention, then the MLP, each added to its input.

        Args:
          x: Tokens (B, T, D).
          branches: (2, B) factors of what attention and MLP add to each image (drop path); None: 1.
          rows: Positions whose output is wanted; the others are only attended to.

        Returns:
          (B, rows of T, D).
        """
        x = self.add(x[:, rows], self.attn(self.norm1(x), rows=rows), branches, 0)
        return self.add(x, self.mlp(self.norm2(x)), branches, 1)

    def with_cls_attention(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens (B, T, D), the cls token first -> (`__call__`, `cls_attention`)."""
        out, cls_attention = self.attn.with_cls_attention(self.norm1(x))
        x = self.add(x, out, None, 0)
        return self.add(x, self.mlp(self.norm2(x)), None, 1), cls_attention

    def add(self, x: jax.Array, branch: jax.Array, branches: jax.Array | None, i: int) -> jax.Array:
        """x (B, T, D) plus what branch i (0: attention, 1: MLP) computes, times its factors."""
        if branches is not None:
            branch = branch * branches[i][:, None, None].astype(branch.dtype)
        return fused.materialize_gradient(x + branch) if self.kernels == "fused" else x + branch

    def cls_attention(self, x: jax.Array) -> jax.Array:
        """Tokens (B, T, D) -> only what the cls token attends to in this block, (B, T - 1)."""
        return self.attn.cls_attention(self.norm1(x))


def run_blocks(blocks: Sequence[Block], x: jax.Array, *, remat: str, scan: bool, rows: slice = ALL) -> jax.Array:
    """Runs blocks that are alike, one after the other. `remat` and `scan` change time and memory, not the numbers.

    Args:
      blocks: At least one.
      x: Tokens (B, T, D).
      remat: What is kept of each block for the backward pass, which computes the rest again. "none": everything;
        "blocks": its input; "cheap": also the products with its weights.
      scan: Whether to compile one block, as a loop over the stacked parameters. They are stored alike without it.
      rows: Positions whose output is wanted; the last block computes no others. What that saves: see `ViT.encode_cls`
        and `Decoder`.

    Returns:
      (B, rows of T, D).
    """
    if blocks[0].is_initializing() or (remat == "none" and not scan):
        for block in blocks[:-1]:
            x = block(x)
        return blocks[-1](x, rows=rows)
    modules, variables = zip(*(block.unbind() for block in blocks), strict=True)

    def step_for(rows: slice):
        def step(x, block_variables):
            return modules[0].apply(block_variables, x, rows=rows)

        # In a loop XLA cannot undo it by common subexpression elimination; elsewhere that must be prevented.
        return step if remat == "none" else jax.checkpoint(step, prevent_cse=not scan, policy=REMAT_POLICIES[remat])

    step, with_all_rows = step_for(ALL), variables if rows == ALL else variables[:-1]
    if scan and with_all_rows:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *with_all_rows)
        x = jax.lax.scan(lambda x, block_variables: (step(x, block_variables), None), x, stacked)[0]
    else:
        for block_variables in with_all_rows:
            x = step(x, block_variables)
    return x if rows == ALL else step_for(rows)(x, variables[-1])
