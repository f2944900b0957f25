"""The transformer: its layers, plain or fused, with their initial values, attention, blocks, sequences of blocks."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models import kernels as fused
from maskcl_jax.models.kernels import LAYER_NORM_EPS

ALL, CLS = slice(None), slice(1)  # positions of a sequence: every one, the cls token

# --- Layers --------------------------------------------------------------------------------------------------

xavier = nn.initializers.xavier_uniform()  # on a fused (D, 3D) kernel: the bound sqrt(6 / 4D) of MAE's fused qkv
token_init = nn.initializers.normal(0.02)


def separate_qkv(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Xavier uniform for q, k and v each on its own, (D, D), on the fused (D, 3D) kernel.

    Source: facebookresearch/moco-v3 `vits.py`.
    """
    bound = (6 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for the bias of a layer: uniform within 1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def dense(features: int, *, kernels: str, **options: Any) -> nn.Dense:
    """A linear layer; "fused" has the gradient of `kernels.matmul`.

    Args:
        features: Width of the output.
        kernels: "plain" or "fused".
        **options: Other attributes of `nn.Dense`.
    """
    return nn.Dense(features, dot_general=fused.dot_general if kernels == "fused" else None, **options)


def layer_norm(dtype: Any, *, kernels: str) -> nn.Module:
    """LayerNorm with eps 1e-6, computed in float32, the variance in two passes: one pass loses small ones.

    Args:
        dtype: Of the output.
        kernels: "plain" or "fused" (`kernels.LayerNorm`).
    """
    if kernels == "fused":
        return fused.LayerNorm(dtype=dtype)
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False, dtype=dtype)


def gelu(x: jax.Array, *, kernels: str) -> jax.Array:
    """Exact GELU, x Phi(x), as torch has it; "fused" is `kernels.gelu`."""
    return fused.gelu(x) if kernels == "fused" else jax.nn.gelu(x, approximate=False)


class Mlp(nn.Module):
    """Linear, exact GELU, linear.

    Attributes:
        width: Width of input and output.
        hidden: Width between the two layers.
        dtype: Of the computation.
        kernels: "plain" or "fused".
    """

    width: int
    hidden: int
    dtype: Any = jnp.float32
    kernels: str = "plain"

    def setup(self) -> None:
        options = {"kernel_init": xavier, "dtype": self.dtype, "kernels": self.kernels}
        self.fc1 = dense(self.hidden, **options)
        self.fc2 = dense(self.width, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        return self.fc2(gelu(self.fc1(x), kernels=self.kernels))


# --- Attention -----------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention; one fused qkv kernel, columns [q, k, v], each head-major.

    Attributes:
        width: Width of the tokens.
        heads: Number of heads; divides `width`.
        dtype: Of the computation; the softmax is in float32.
        qkv_init: Initial values of the fused kernel.
        attention: "xla", or "cudnn" (16 bits, on a GPU), which never writes the weights to memory.
        kernels: "plain" or "fused"; with "cudnn" of the two projections only.
    """

    width: int
    heads: int
    dtype: Any = jnp.float32
    qkv_init: nn.initializers.Initializer = xavier
    attention: str = "xla"
    kernels: str = "plain"

    def setup(self) -> None:
        options = {"dtype": self.dtype, "kernels": self.kernels}
        self.qkv = dense(3 * self.width, kernel_init=self.qkv_init, **options)
        self.proj = dense(self.width, kernel_init=xavier, **options)

    def __call__(self, x: jax.Array, *, rows: slice = ALL) -> jax.Array:
        """Mixes the tokens of each sequence.

        Args:
            x: Tokens (B, T, D).
            rows: Positions whose output is wanted; the others are only attended to.

        Returns:
            (B, rows of T, D).
        """
        q, k, v = self.queries_keys_values(x)
        return self.mix(q[:, rows], k, v)

    def with_cls_attention(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens (B, T, D), the cls token first -> (`__call__`, `cls_attention`)."""
        q, k, v = self.queries_keys_values(x)
        return self.mix(q, k, v), cls_weights(q, k)

    def cls_attention(self, x: jax.Array) -> jax.Array:
        """Tokens (B, T, D) -> what the cls token attends to, (B, T - 1) float32; see `cls_weights`."""
        q, k, _ = self.queries_keys_values(x)
        return cls_weights(q, k)

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attention and projection; the shapes are those of `dot_product_attention`. (B, Q, D)."""
        out = dot_product_attention(q, k, v, attention=self.attention, kernels=self.kernels)
        return self.proj(out.reshape(*out.shape[:2], self.width))

    def queries_keys_values(self, x: jax.Array) -> list[jax.Array]:
        """(B, T, D) -> queries, keys and values, each (B, T, heads, head width)."""
        head_width = self.width // self.heads
        return [part.reshape(*x.shape[:2], self.heads, head_width) for part in jnp.split(self.qkv(x), 3, axis=-1)]


def dot_product_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, attention: str, kernels: str) -> jax.Array:
    """Computes softmax(q k^T / sqrt(head width)) v.

    Args:
        q: Queries (B, Q, heads, head width).
        k: Keys (B, K, heads, head width).
        v: Values, of the shape of the keys.
        attention: "xla" or "cudnn".
        kernels: "plain" or "fused"; ignored by "cudnn".

    Returns:
        An array of the shape of q.
    """
    if attention == "cudnn":
        return cudnn_attention(q, k, v)
    if kernels == "fused":
        return fused.dot_product_attention(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`dot_product_attention` by cuDNN, for sequences of any length.

    JAX 0.10 refuses the gradient at an odd length, which a cls token makes: there, and where queries are fewer than
    keys, padding is added and masked.
    """
    b, count, t = *q.shape[:2], k.shape[1]
    if count == t and t % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    even = t + t % 2
    q, k, v = (jnp.pad(x, ((0, 0), (0, even - x.shape[1]), (0, 0), (0, 0))) for x in (q, k, v))
    query_lengths, key_lengths = (jnp.full((b,), length, jnp.int32) for length in (count, t))
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=query_lengths, key_value_seq_lengths=key_lengths, implementation="cudnn"
    )
    return out[:, :count]


def cls_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """The attention weights of the cls token (row 0) to all other tokens, averaged over heads.

    Args:
        q: Queries (B, T, heads, head width).
        k: Keys, of the same shape.

    Returns:
        (B, T - 1) float32. The rest of the sum of 1 is the cls token's attention to itself.
    """
    # Keys heads first, as the fused attention needs them: XLA computes them once.
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk",
        fused.scale_queries(fused.heads_first(q[:, :1])),
        fused.heads_first(k),
        preferred_element_type=jnp.float32,
    )
    return jax.nn.softmax(scores, axis=-1)[:, :, 0, 1:].mean(axis=1)


# --- Blocks --------------------------------------------------------------------------------------------------


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

    def setup(self) -> None:
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
        return x + branch

    def cls_attention(self, x: jax.Array) -> jax.Array:
        """Tokens (B, T, D) -> only what the cls token attends to in this block, (B, T - 1)."""
        return self.attn.cls_attention(self.norm1(x))


def save_weight_products(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """Whether an operation is a product with a layer's weights: most of the work, and a small part of the memory."""
    if primitive.name == "conv_general_dilated":
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **parameters)


# `config.remat` -> what of a block is kept for the backward pass besides its input; the rest is computed again.
REMAT_POLICIES = {"blocks": None, "cheap": save_weight_products}


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

    def step_for(rows: slice) -> Callable[..., Any]:
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
