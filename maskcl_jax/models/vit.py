"""The vision transformer: blocks, and the encoder that MAE and its descendants share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax import masking
from maskcl_jax.errors import UserError
from maskcl_jax.models.position import sincos_table

LAYER_NORM_EPS = 1e-6

VIT_SIZES = {
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "H": {"width": 1280, "depth": 32, "heads": 16},
}

xavier = nn.initializers.xavier_uniform()  # on a fused (D, 3D) kernel: the bound sqrt(6 / 4D) of MAE's fused qkv
token_init = nn.initializers.normal(0.02)


def separate_qkv(key, shape, dtype=jnp.float32):
    """Xavier uniform for q, k and v each on its own, (D, D), on the fused (D, 3D) kernel (facebookresearch/moco-v3)."""
    bound = (6 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def vit_size(variant: str) -> dict:
    """ "B/16" -> {width, depth, heads, mlp_ratio, patch_size}. Raises UserError for an unknown one."""
    name, _, patch = variant.partition("/")
    if name not in VIT_SIZES or not patch.isdigit() or int(patch) == 0:
        raise UserError(
            f"variant={variant!r} is unknown: write SIZE/PATCH with a size of {', '.join(VIT_SIZES)}, for instance B/16"
        )
    return {**VIT_SIZES[name], "mlp_ratio": 4.0, "patch_size": int(patch)}


def torch_bias_init(fan_in: int):
    """PyTorch's default for the bias of a layer: uniform within 1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def moments(x):
    """x in float32, its mean over the last dimension, and one over its deviation, the variance taken in two passes."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return x, mean, jax.lax.rsqrt(variance + LAYER_NORM_EPS)


@jax.custom_vjp
def normalized(x, scale, bias):
    """LayerNorm over the last dimension, float32.

    With a gradient of its own, which keeps x and scale alone: the one that JAX derives takes a CPU longer.
    """
    x, mean, rate = moments(x)
    return (x - mean) * rate * scale + bias


def normalized_backward(kept, gradient):
    """The gradients of x, scale and bias."""
    x, scale = kept
    wide, mean, rate = moments(x)
    unit, inner = (wide - mean) * rate, gradient * scale
    along = jnp.mean(inner * unit, axis=-1, keepdims=True)
    outer = rate * (inner - inner.mean(axis=-1, keepdims=True) - unit * along)
    others = tuple(range(x.ndim - 1))
    return outer.astype(x.dtype), jnp.sum(gradient * unit, axis=others), jnp.sum(gradient, axis=others)


normalized.defvjp(lambda x, scale, bias: (normalized(x, scale, bias), (x, scale)), normalized_backward)


class LayerNorm(nn.Module):
    """LayerNorm, eps 1e-6, in float32. flax's own has its variance in one pass, and loses small ones, or is slow."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(..., D) -> (..., D) of `dtype`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalized(x, scale, bias).astype(self.dtype)


@jax.custom_vjp
def settled(x):
    """x; in the backward pass its gradient is computed once, and kept.

    Along the residual stream the gradient is a sum that grows from block to block. Left alone XLA computes it, in every
    block again, from the last block on: work quadratic in the depth.
    """
    return x


settled.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


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
        self.qkv = nn.Dense(3 * self.width, kernel_init=self.qkv_init, dtype=self.dtype)
        self.proj = nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype)

    def split(self, x):
        """(B, T, D) -> three of (B, T, heads, head width)."""
        b, t, _ = x.shape
        return [part.reshape(b, t, self.heads, -1) for part in jnp.split(self.qkv(x), 3, axis=-1)]

    def weights(self, q, k):
        """(B, heads, Q, K) float32: softmax of q.k / sqrt(head width)."""
        logits = scores(heads_first(q), heads_first(k))
        return jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)

    def __call__(self, x, *, return_cls_attention: bool = False):
        """(B, T, D) -> (B, T, D), and if asked what the cls token (row 0) attends to: (B, T - 1), mean over heads."""
        q, k, v = self.split(x)
        if self.attention == "cudnn":
            mixed = cudnn_attention(q, k, v)
            weights = self.weights(q[:, :1], k) if return_cls_attention else None
        else:
            weights = self.weights(q, k)
            # Batched products of whole matrices: an einsum from and to (B, T, heads, width) costs a CPU six times that.
            mixed = heads_first(weights.astype(self.dtype) @ heads_first(v))
        out = self.proj(mixed.reshape(x.shape))
        return (out, weights[:, :, 0, 1:].mean(axis=1)) if return_cls_attention else out

    def cls_attention(self, x):
        """The attention of the cls query alone, (B, T - 1): no values, no projection, of the queries one."""
        kernel, bias = (self.qkv.variables["params"][name].astype(self.dtype) for name in ("kernel", "bias"))
        x, d = x.astype(self.dtype), self.width
        q, k = x[:, :1] @ kernel[:, :d] + bias[:d], x @ kernel[:, d : 2 * d] + bias[d : 2 * d]
        q, k = (part.reshape(*part.shape[:2], self.heads, -1) for part in (q, k))
        return self.weights(q, k)[:, :, 0, 1:].mean(axis=1)


@jax.custom_vjp
def scores(q, k):
    """(B, heads, Q, d), (B, heads, K, d) -> q.k, (B, heads, Q, K) float32.

    Their gradients are products in the dtype of q and k: JAX would take float32 for them, since the result is.
    """
    return jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)


def scores_backward(kept, gradient):
    """The gradients of q and k."""
    q, k = kept
    gradient = gradient.astype(q.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", gradient, k), jnp.einsum("bhqk,bhqd->bhkd", gradient, q)


scores.defvjp(lambda q, k: (scores(q, k), (q, k)), scores_backward)


def cudnn_attention(q, k, v):
    """Three of (B, T, heads, head width) -> what attention mixes of v, of the same shape.

    JAX 0.10 refuses the gradient at an odd length, which a cls token makes: there a row is added that nobody sees.
    """
    b, t, *_ = q.shape
    if t % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full((b,), t, jnp.int32)
    seen = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    return jax.nn.dot_product_attention(q, k, v, **seen, implementation="cudnn")[:, :t]


def heads_first(x):
    """(B, T, heads, head width) -> (B, heads, T, head width), and back."""
    return jnp.swapaxes(x, 1, 2)


@jax.custom_vjp
def gelu(x):
    """Exact GELU, x Phi(x), as torch has it. Only x is kept for the backward pass; the inside is float32."""
    wide = x.astype(jnp.float32)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def gelu_backward(x, gradient):
    """Phi(x) + x phi(x), times the gradient."""
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return (((normal_cdf(wide) + wide * density) * gradient).astype(x.dtype),)


def normal_cdf(x):
    """Phi, by erf as torch has it."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(lambda x: (gelu(x), x), gelu_backward)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    width: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(B, T, D) -> (B, T, D)."""
        x = nn.Dense(self.hidden, kernel_init=xavier, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        return nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="fc2")(x)


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

    def __call__(self, x, branches=None, *, return_cls_attention: bool = False):
        """(B, T, D) -> (B, T, D), and if asked the cls token's attention (B, T - 1).

        branches: (2, B) factors of what attention and MLP add to each image (drop path); None: 1.
        """
        mixed = self.attn(self.norm1(x), return_cls_attention=return_cls_attention)
        mixed, attention = mixed if return_cls_attention else (mixed, None)
        x = settled(x + scaled(mixed, branches, 0))
        x = settled(x + scaled(self.mlp(self.norm2(x)), branches, 1))
        return (x, attention) if return_cls_attention else x

    def cls_attention(self, x):
        """Only what the cls token attends to in this block, (B, T - 1)."""
        return self.attn.cls_attention(self.norm1(x))


def through(blocks, x, *, remat: bool, scan: bool):
    """(B, T, D) -> (B, T, D) after all blocks, which are alike. The switches change time and memory, not the numbers.

    remat: only each block's input is kept for the backward pass, which runs it again. scan: one compiled block in a
    loop over the stacked parameters, which are stored as without it.
    """
    if blocks[0].is_initializing() or not (remat or scan):
        for block in blocks:
            x = block(x)
        return x
    modules, variables = zip(*(block.unbind() for block in blocks), strict=True)

    def step(x, of_block):
        return modules[0].apply(of_block, x)

    if remat:
        # In a loop the compiler cannot undo it by finding the same values twice, elsewhere it must be kept from that.
        step = jax.checkpoint(step, prevent_cse=not scan)
    if not scan:
        for of_block in variables:
            x = step(x, of_block)
        return x
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
    return jax.lax.scan(lambda x, of_block: (step(x, of_block), None), x, stacked)[0]


def scaled(added, branches, i: int):
    """What a branch adds to each image, times its factor."""
    return added if branches is None else added * branches[i][:, None, None].astype(added.dtype)


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
    remat: bool = False
    scan: bool = False
    attention: str = "xla"

    def setup(self):
        as_moco = self.init_rule == "mocov3"
        fan_in = self.patch_size**2 * self.channels
        patch_bias = nn.initializers.zeros if as_moco else torch_bias_init(fan_in)
        self.patch_embed = nn.Dense(self.width, kernel_init=xavier, bias_init=patch_bias, dtype=self.dtype)
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

    def embed(self, images):
        """Normalised images (B, H, W, C) -> patch tokens with positions (B, N, D)."""
        tokens = self.patch_embed(masking.patchify(images, self.patch_size))
        if self.positions == "learned":
            return tokens + self.pos_embed[:, 1:].astype(tokens.dtype)
        return tokens + jnp.asarray(sincos_table(self.width, self.grid, order=self.positions), tokens.dtype)

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

    def last(self, tokens):
        """Patch tokens (B, n, D) -> the output of the last block, (B, 1 + n, D), before the final norm."""
        return through(self.blocks, self.with_cls(tokens), remat=self.remat, scan=self.scan)

    def encode(self, tokens):
        """Patch tokens (B, n, D), any subset -> (B, 1 + n, D) after the final norm, cls first."""
        return self.norm(self.last(tokens))

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
