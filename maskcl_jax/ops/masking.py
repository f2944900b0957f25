"""Masks over patches: cutting images into patches, gathering them, and the rules that choose which are masked."""

import jax
import jax.numpy as jnp


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """(B, H, W, C) -> (B, N, patch*patch*C), patches row-major, each flattened (row, column, channel)."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: jax.Array, patch: int, size: tuple[int, int]) -> jax.Array:
    """The inverse of `patchify`, for images of `size` (height, width)."""
    b, _, d = patches.shape
    rows, columns = size[0] // patch, size[1] // patch
    x = patches.reshape(b, rows, columns, patch, patch, d // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, *size, d // patch**2)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Number of patches that stay visible, truncated.

    Source: facebookresearch/mae `random_masking`.
    """
    return int(num_patches * (1 - mask_ratio))


def take(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Gathers patches: tokens (B, N, D), patch indices (B, n) -> (B, n, D)."""
    return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)


def restore_ids(visible: jax.Array, masked: jax.Array) -> jax.Array:
    """The inverse permutation of [visible, masked].

    Args:
        visible: Patch indices (B, n).
        masked: All other patch indices (B, N - n).

    Returns:
        For each patch its position in the sequence [visible, masked], (B, N) int32.
    """
    return jnp.argsort(jnp.concatenate([visible, masked], axis=1), axis=1).astype(jnp.int32)


def mask_of(visible: jax.Array, num_patches: int) -> jax.Array:
    """Patch indices (B, n) -> (B, N) float32: 1 where a patch is masked, 0 where it is visible."""
    mask = jnp.ones((visible.shape[0], num_patches), jnp.float32)
    return mask.at[jnp.arange(visible.shape[0])[:, None], visible].set(0.0)


def importance_score(attention: jax.Array, noise: jax.Array) -> jax.Array:
    """attention - noise, both (B, N): patches of little attention come first and stay visible.

    The released ccMIM code ranks by softmax(A) / softmax(u), which is the same order: both denominators are constant
    for each image.

    Source: Sherrylone/ccMIM `models_ccmim.py`.
    """
    return attention - noise


def gumbel_score(attention: jax.Array, noise: jax.Array) -> jax.Array:
    """Masked patches drawn without replacement with probability proportional to attention (Gumbel top-k).

    attention and noise, uniform in [0, 1), are (B, N). Our choice.
    """
    gumbel = -jnp.log(-jnp.log(jnp.clip(noise, 1e-7, 1 - 1e-7)))
    return jnp.log(jnp.maximum(attention, 1e-12)) + gumbel


def topk_score(attention: jax.Array, noise: jax.Array) -> jax.Array:
    """attention (B, N): the most attended patches are masked, without any randomness. Our choice, as a bound."""
    return attention


SCORES = {"importance": importance_score, "gumbel": gumbel_score, "topk": topk_score}


def split_by_score(score: jax.Array, visible: int) -> tuple[jax.Array, jax.Array]:
    """Splits patches by their score (B, N).

    Args:
        score: One number per patch; no gradient.
        visible: Number n of patches that stay visible: those of the lowest scores.

    Returns:
        (visible, masked) patch indices, (B, n) and (B, N - n) int32, each in ascending order of score.
    """
    order = jnp.argsort(jax.lax.stop_gradient(score), axis=1).astype(jnp.int32)
    return order[:, :visible], order[:, visible:]
