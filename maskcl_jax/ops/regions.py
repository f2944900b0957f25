"""Boxes on the device: the pixels that they cover, and how far they overlap.

A box is x0, y0, x1, y1 in pixels of the view.
"""

import jax
import jax.numpy as jnp


def pixels_in(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The pixels whose center lies in a box: x0 <= column + 0.5 < x1, and rows likewise.

    Args:
      boxes: (..., 4).
      size: (height, width) of the view in pixels.

    Returns:
      (..., height, width) bool.
    """
    x0, y0, x1, y1 = jnp.moveaxis(boxes[..., None, None, :], -1, 0)
    down, across = jnp.arange(size[0])[:, None] + 0.5, jnp.arange(size[1])[None, :] + 0.5
    return (x0 <= across) & (across < x1) & (y0 <= down) & (down < y1)


def outline(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The outermost pixels of any of R boxes: (..., R, 4) -> (..., height, width) bool."""
    whole = pixels_in(boxes, size)
    return (whole & ~pixels_in(boxes + jnp.array([1.0, 1.0, -1.0, -1.0]), size)).any(axis=-3)


def overlap(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """Intersection over union: (..., R, 4), (..., S, 4) -> (..., R, S)."""
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    intersection = jnp.prod(jnp.maximum(sides, 0.0), axis=-1)
    return intersection / (area(a) + area(b) - intersection)


def area(boxes: jax.Array) -> jax.Array:
    """(..., 4) -> (...) in square pixels."""
    return jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
