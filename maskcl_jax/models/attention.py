"""Self-attention, plain or by cuDNN."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.models.layers import Dense, product, xavier

ALL, CLS, PATCHES = slice(None), slice(1), slice(1, None)  # rows of a sequence: every one, the first, the others


class Attention(nn.Module):
    """Multi-head self-attention; one fused qkv kernel, columns [q, k, v], each head-major.

    attention: "xla", or "cudnn" (16 bits, on a GPU), which never writes the weights to memory.
    """

    width: int
    heads: int
    dtype: Any = jnp.float32
    qkv_init: Any = xavier
    attention: str = "xla"

    def setup(self):
        self.qkv = Dense(3 * self.width, kernel_init=self.qkv_init, dtype=self.dtype)
        self.proj = Dense(self.width, kernel_init=xavier, dtype=self.dtype)

    def split(self, x, rows: slice):
        """(B, T, D) -> queries of `rows`, keys, values, each (B, ..., heads, head width)."""
        d = self.width
        if rows == ALL:
            parts = jnp.split(self.qkv(x), 3, axis=-1)
        else:
            parts = [self.columns(x[:, rows], 0, d), *jnp.split(self.columns(x, d, 3 * d), 2, axis=-1)]
        return [self.by_head(part) for part in parts]

    def by_head(self, part):
        """(B, T, D) -> (B, T, heads, head width)."""
        return part.reshape(*part.shape[:2], self.heads, -1)

    def columns(self, x, begin: int, end: int):
        """Some columns of the fused product: [q, k, v] of x (B, T, D), from `begin` to before `end`."""
        kernel, bias = (self.qkv.variables["params"][name].astype(self.dtype) for name in ("kernel", "bias"))
        return product(x.astype(self.dtype), kernel[:, begin:end]) + bias[begin:end]

    def __call__(self, x, *, rows: slice = ALL, return_cls_attention: bool = False):
        """(B, T, D) -> (B, T, D), and if asked what the cls token (row 0) attends to: (B, T - 1), mean over heads.

        rows: those of the result that are wanted; no other queries are made.
        """
        q, k, v = self.split(x, rows)
        if self.attention == "cudnn":
            mixed = cudnn_attention(q, k, v)
        else:
            # Products of whole matrices: an einsum from and to (B, T, heads, width) costs a CPU six times that.
            mixed = heads_first(attend(heads_first(q), heads_first(k), heads_first(v)))
        out = self.proj(mixed.reshape(*mixed.shape[:2], self.width))
        return (out, cls_row(q[:, :1], k)) if return_cls_attention else out

    def cls_attention(self, x):
        """The attention of the cls query alone, (B, T - 1): no values, no projection, of the queries one."""
        d = self.width
        return cls_row(self.by_head(self.columns(x[:, :1], 0, d)), self.by_head(self.columns(x, d, 2 * d)))


def cls_row(q, k):
    """The cls token's query (B, 1, heads, head width), keys (B, T, ...) -> its weights but for itself, (B, T - 1)."""
    unscaled, total = exponentials(heads_first(scaled_queries(q)), heads_first(k))
    return (unscaled / total)[:, :, 0, 1:].mean(axis=1)


@jax.custom_vjp
def attend(q, k, v):
    """(B, heads, T, head width) each -> softmax(q.k / sqrt(head width)) v, of their dtype; the softmax in float32.

    The weights are divided by their sum after the product with v, and kept undivided, in that dtype: the gradient
    that JAX derives keeps them twice, in float32, and multiplies in it.
    """
    return attend_forward(q, k, v)[0]


def attend_forward(q, k, v):
    """What attention mixes of v, and what its gradient needs."""
    q = scaled_queries(q)
    weights, total = exponentials(q, k)
    weights = weights.astype(v.dtype)
    mixed = (jnp.matmul(weights, v, preferred_element_type=jnp.float32) / total).astype(v.dtype)
    return mixed, (q, k, v, weights, total)


def attend_backward(kept, gradient):
    """The gradients of q, k and v."""
    q, k, v, weights, total = kept
    gradient = (gradient / total).astype(v.dtype)
    of_weights = jnp.einsum("bhqd,bhkd->bhqk", gradient, v, preferred_element_type=jnp.float32)
    along = jnp.sum(weights * of_weights, axis=-1, keepdims=True) / total
    of_scores = (weights * (of_weights - along)).astype(v.dtype)
    of_q = scaled_queries(of_scores @ k)
    return of_q, jnp.einsum("bhqk,bhqd->bhkd", of_scores, q), jnp.einsum("bhqk,bhqd->bhkd", weights, gradient)


attend.defvjp(attend_forward, attend_backward)


def exponentials(q, k):
    """Scaled queries (B, heads, Q, d), keys (B, heads, K, d) -> the softmax over keys before its division.

    (B, heads, Q, K), the greatest in each row 1, and their sums (B, heads, Q, 1), float32.
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return weights, weights.sum(axis=-1, keepdims=True)


def scaled_queries(q):
    """q / sqrt(head width), the last dimension."""
    return q * q.shape[-1] ** -0.5


def cudnn_attention(q, k, v):
    """q, k, v (B, rows or T, heads, head width) -> what attention mixes of v, of the shape of q.

    JAX 0.10 refuses the gradient at an odd length, which a cls token makes: there, and where queries are fewer than
    keys, rows are added that nobody sees.
    """
    b, count, t = *q.shape[:2], k.shape[1]
    if count == t and t % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    even = t + t % 2
    q, k, v = (jnp.pad(x, ((0, 0), (0, even - x.shape[1]), (0, 0), (0, 0))) for x in (q, k, v))
    seen = {"query_seq_lengths": count, "key_value_seq_lengths": t}
    seen = {name: jnp.full((b,), length, jnp.int32) for name, length in seen.items()}
    return jax.nn.dot_product_attention(q, k, v, **seen, implementation="cudnn")[:, :count]


def heads_first(x):
    """(B, T, heads, head width) -> (B, heads, T, head width), and back."""
    return jnp.swapaxes(x, 1, 2)
