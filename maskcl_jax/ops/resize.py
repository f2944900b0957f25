"""Crops resized on the device as Pillow resizes them: one matrix a direction, rounded after each."""

from typing import Any

import jax
import jax.numpy as jnp

REACH = {"bicubic": 2.0, "bilinear": 1.0}  # half-widths of the filters


def resized_crops(
    images: jax.Array,
    crops: jax.Array,
    shift: jax.Array,
    *,
    size: tuple[int, int],
    master: tuple[int, int] | None,
    interpolation: str,
) -> jax.Array:
    """The crop of every image resized, perhaps mirrored, and of a master the window at `shift`.

    Args:
        images: (B, H, W, C) uint8.
        crops: (B, 5) int32: top, left, height, width, mirrored.
        shift: (B, 2) int32, pixels down and across.
        size: (height, width) of the result.
        master: what a crop is resized to where that is larger than `size`.
        interpolation: "bicubic" or "bilinear".

    Returns:
        (B, *size, C) uint8.
    """
    full, flip, directions = master or size, crops[:, 4] > 0, []
    for axis, mirrored in ((0, jnp.zeros_like(flip)), (1, flip)):
        place = shift[:, axis, None] + jnp.arange(size[axis])
        place = jnp.where(mirrored[:, None], full[axis] - 1 - place, place)
        start, length = crops[:, axis], crops[:, axis + 2]
        directions.append(filter_weights(start, length, place, full[axis], images.shape[axis + 1], interpolation))
    # Exact products: an accelerator's default would round pixels to eight bits of mantissa before it adds them.
    options: dict[str, Any] = {"precision": jax.lax.Precision.HIGHEST}
    across = _rounded(jnp.einsum("bpw,bhwc->bhpc", directions[1], images.astype(jnp.float32), **options))
    return _rounded(jnp.einsum("boh,bhpc->bopc", directions[0], across, **options)).astype(jnp.uint8)


def filter_weights(
    start: jax.Array, length: jax.Array, place: jax.Array, full: int, source: int, interpolation: str
) -> jax.Array:
    """How much every pixel of a line adds to the pixels `place` of the line cropped and resized.

    The antialiased filters of Pillow: the cubic of a = -0.5, or the triangle.

    Args:
        start: (B,) of the crop.
        length: (B,) of the crop.
        place: (B, n), pixels of the result.
        full: length of the whole resized line.
        source: length of the original line.
        interpolation: "bicubic" or "bilinear".

    Returns:
        (B, n, source) float32.
    """
    scale = length[:, None, None] / full
    wide = jnp.maximum(scale, 1.0)
    center = start[:, None, None] + (place[:, :, None] + 0.5) * scale
    pixel = jnp.arange(source)
    distance = jnp.abs(pixel + 0.5 - center) / wide
    if interpolation == "bicubic":
        near = (1.5 * distance - 2.5) * distance**2 + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        value = jnp.where(distance < 1.0, near, far)
    else:
        value = 1.0 - distance
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    value = jnp.where(inside & (distance < REACH[interpolation]), value, 0.0)
    return value / value.sum(axis=-1, keepdims=True)


def _rounded(pixels):
    """0..255 without fractions: a cubic filter's overshoot is clipped, after each of Pillow's two passes."""
    return jnp.clip(jnp.floor(pixels + 0.5), 0, 255)
