"""Mask mathematics: patches, gathering, and the rules that choose what is hidden."""

import jax
import jax.numpy as jnp


def patchify(images, patch: int):
    """(B, H, W, C) -> (B, N, patch*patch*C), patches row-major, each flattened (row, column, channel)."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches, patch: int, size: tuple[int, int]):
    """The inverse of `patchify` for images of `size` (height, width)."""
    b, _, d = patches.shape
    rows, columns = size[0] // patch, size[1] // patch
    x = patches.reshape(b, rows, columns, patch, patch, d // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, *size, d // patch**2)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Patches that stay, cut off as Python's floats give it (facebookresearch/mae `random_masking`)."""
    return int(num_patches * (1 - mask_ratio))


def take(tokens, ids):
    """Rows of (B, N, D) by patch numbers (B, n): (B, n, D)."""
    return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)


def restore_ids(visible, masked):
    """For each patch its place in the sequence [visible, masked]: (B, N) int32, the inverse permutation."""
    return jnp.argsort(jnp.concatenate([visible, masked], axis=1), axis=1).astype(jnp.int32)


def mask_of(visible, num_patches: int):
    """(B, N) float32: 1 where a patch is masked, 0 where it is visible."""
    hidden = jnp.ones((visible.shape[0], num_patches), jnp.float32)
    return hidden.at[jnp.arange(visible.shape[0])[:, None], visible].set(0.0)


def importance_score(attention, noise):
    """A - u, ascending: little attention first, hence visible.

    The released ccMIM code ranks by softmax(A) / softmax(u), which is the same order: both denominators are
    constant per image. Source: Sherrylone/ccMIM `models_ccmim.py`.
    """
    return attention - noise


def gumbel_score(attention, noise):
    """Masked patches drawn without replacement with probability proportional to A (Gumbel top-k): our choice."""
    gumbel = -jnp.log(-jnp.log(jnp.clip(noise, 1e-7, 1 - 1e-7)))
    return jnp.log(jnp.maximum(attention, 1e-12)) + gumbel


def topk_score(attention, noise):
    """The most attended patches, always: no chance at all. Our choice, as a bound."""
    return attention


SCORES = {"importance": importance_score, "gumbel": gumbel_score, "topk": topk_score}


def split_by_score(score, visible: int):
    """(visible, masked) patch numbers, int32: the `visible` lowest scores and the rest, each in ascending order."""
    order = jnp.argsort(jax.lax.stop_gradient(score), axis=1).astype(jnp.int32)
    return order[:, :visible], order[:, visible:]
