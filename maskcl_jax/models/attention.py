"""Multi-head self-attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models import kernels as fused
from maskcl_jax.models.layers import dense, xavier

ALL, CLS = slice(None), slice(1)  # positions of a sequence: every one, the cls token


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

    def setup(self):
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
