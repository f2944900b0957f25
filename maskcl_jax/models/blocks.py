"""Transformer blocks, and many in a row."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models.attention import ALL, Attention
from maskcl_jax.models.layers import LayerNorm, Mlp, xavier
from maskcl_jax.models.remat import POLICIES


@jax.custom_vjp
def settled(x):
    """x; in the backward pass its gradient is computed once, and kept.

    Along the residual stream the gradient is a sum that grows from block to block. Left alone XLA computes it, in every
    block again, from the last block on: work quadratic in the depth.
    """
    return x


settled.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


class Block(nn.Module):
    """Pre-norm transformer block without dropout or LayerScale."""

    width: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    qkv_init: Any = xavier
    attention: str = "xla"

    def setup(self):
        self.norm1 = LayerNorm(self.dtype)
        self.attn = Attention(self.width, self.heads, self.dtype, self.qkv_init, self.attention)
        self.norm2 = LayerNorm(self.dtype)
        self.mlp = Mlp(self.width, int(self.width * self.mlp_ratio), self.dtype)

    def __call__(self, x, branches=None, *, rows: slice = ALL, return_cls_attention: bool = False):
        """(B, T, D) -> (B, T, D), and if asked the cls token's attention (B, T - 1).

        branches: (2, B) factors of what attention and MLP add to each image (drop path); None: 1. rows: those of the
        result that are wanted; of others only keys and values are made.
        """
        mixed = self.attn(self.norm1(x), rows=rows, return_cls_attention=return_cls_attention)
        mixed, attention = mixed if return_cls_attention else (mixed, None)
        x = settled(x[:, rows] + scaled(mixed, branches, 0))
        x = settled(x + scaled(self.mlp(self.norm2(x)), branches, 1))
        return (x, attention) if return_cls_attention else x

    def cls_attention(self, x):
        """Only what the cls token attends to in this block, (B, T - 1)."""
        return self.attn.cls_attention(self.norm1(x))


def through(blocks, x, *, remat: str, scan: bool, rows: slice = ALL):
    """(B, T, D) -> (B, T, D) after all blocks, which are alike. The switches change time and memory, not the numbers.

    remat: "none", or what is kept of each block for the backward pass, which makes the rest again: "blocks", its input,
    "cheap", what its weights make, too. scan: one compiled block in a loop over the stacked parameters, which are
    stored as without it. rows: those of the result that are wanted; the last block makes no others.
    """
    if blocks[0].is_initializing() or (remat == "none" and not scan):
        for block in blocks[:-1]:
            x = block(x)
        # What makes some rows alone finds its parameters, and does not make them.
        return blocks[-1](x)[:, rows] if blocks[0].is_initializing() else blocks[-1](x, rows=rows)
    modules, variables = zip(*(block.unbind() for block in blocks), strict=True)

    def step_of(rows):
        def step(x, of_block):
            return modules[0].apply(of_block, x, rows=rows)

        # In a loop the compiler cannot undo it by finding the same values twice, elsewhere it must be kept from that.
        return step if remat == "none" else jax.checkpoint(step, prevent_cse=not scan, policy=POLICIES[remat])

    step, alike = step_of(ALL), variables if rows == ALL else variables[:-1]
    if scan and alike:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alike)
        x = jax.lax.scan(lambda x, of_block: (step(x, of_block), None), x, stacked)[0]
    else:
        for of_block in alike:
            x = step(x, of_block)
    return x if rows == ALL else step_of(rows)(x, variables[-1])


def scaled(added, branches, i: int):
    """What a branch adds to each image, times its factor."""
    return added if branches is None else added * branches[i][:, None, None].astype(added.dtype)
