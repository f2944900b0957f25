"""Boxes on the device: which pixels they cover, how far they overlap. x0, y0, x1, y1 in pixels of the view."""

import jax.numpy as jnp


def pixels_in(boxes, size: tuple[int, int]):
    """(..., 4) -> (..., height, width) bool: the pixels whose centre lies in the box, x0 <= column + 0.5 < x1."""
    x0, y0, x1, y1 = jnp.moveaxis(boxes[..., None, None, :], -1, 0)
    down, across = jnp.arange(size[0])[:, None] + 0.5, jnp.arange(size[1])[None, :] + 0.5
    return (x0 <= across) & (across < x1) & (y0 <= down) & (down < y1)


def outline(boxes, size: tuple[int, int]):
    """(..., R, 4) -> (..., height, width) bool: the outermost pixels of each box."""
    whole = pixels_in(boxes, size)
    return (whole & ~pixels_in(boxes + jnp.array([1.0, 1.0, -1.0, -1.0]), size)).any(axis=-3)


def overlap(boxes, others):
    """(..., R, 4), (..., S, 4) -> (..., R, S): intersection over union."""
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.prod(jnp.maximum(sides, 0.0), axis=-1)
    return shared / (area(a) + area(b) - shared)


def area(boxes):
    """(..., 4) -> (...): in pixels."""
    return jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
