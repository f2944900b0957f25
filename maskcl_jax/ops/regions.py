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


HIGHEST = jax.lax.Precision.HIGHEST


def roi_align(maps: jax.Array, boxes: jax.Array, *, scale: float, size: int, samples: int = 2) -> jax.Array:
    """Reads regions of feature maps, as torchvision's `roi_align` with aligned=True.

    Each bin is the mean of samples x samples points, read bilinearly. A point more than a cell outside of the map
    counts 0, one less far outside is moved to the edge.

    Args:
        maps: Feature maps (B, H, W, C).
        boxes: (B, R, 4), x0, y0, x1, y1 in pixels of the image.
        scale: Cells of the map per pixel, 1 / stride.
        size: Bins along each side.
        samples: Points per bin along each side.

    Returns:
        (B, R, size, size, C) float32.
    """
    rows, columns = axis_weights(maps.shape, boxes, scale=scale, size=size, samples=samples)
    read = jnp.einsum("brih,bhwc->briwc", rows, maps.astype(jnp.float32), precision=HIGHEST)
    return jnp.einsum("brjw,briwc->brijc", columns, read, precision=HIGHEST)


def roi_mean(maps: jax.Array, boxes: jax.Array, *, scale: float, size: int, samples: int = 2) -> jax.Array:
    """The mean of `roi_align` over its bins, (B, R, C) float32, without computing them: both are linear."""
    rows, columns = axis_weights(maps.shape, boxes, scale=scale, size=size, samples=samples)
    weights = rows.mean(axis=2)[..., :, None] * columns.mean(axis=2)[..., None, :]
    return jnp.einsum("brhw,bhwc->brc", weights, maps.astype(jnp.float32), precision=HIGHEST)


def axis_weights(
    shape: tuple[int, ...], boxes: jax.Array, *, scale: float, size: int, samples: int
) -> tuple[jax.Array, jax.Array]:
    """The weight of each row, (B, R, size, H), and of each column, (B, R, size, W), of a map in each bin.

    shape: Of the maps, (B, H, W, C). For the rest see `roi_align`.
    """
    x0, y0, x1, y1 = jnp.moveaxis(boxes.astype(jnp.float32) * scale - 0.5, -1, 0)
    return bin_weights(y0, y1, shape[1], size, samples), bin_weights(x0, x1, shape[2], size, samples)


def bin_weights(start: jax.Array, end: jax.Array, length: int, size: int, samples: int) -> jax.Array:
    """The weights of the cells of one axis.

    Args:
        start: Where the boxes begin, (B, R) in cells.
        end: Where they end.
        length: Cells of the axis.
        size: Bins.
        samples: Points per bin.

    Returns:
        (B, R, size, length).
    """
    fractions = (jnp.arange(size * samples) + 0.5) / (size * samples)
    points = start[..., None] + (end - start)[..., None] * fractions
    inside = (points >= -1.0) & (points <= length)
    distance = jnp.abs(jnp.clip(points, 0.0, length - 1.0)[..., None] - jnp.arange(length))
    weights = jnp.where(inside[..., None], jnp.maximum(0.0, 1.0 - distance), 0.0)
    return weights.reshape(*start.shape, size, samples, length).mean(axis=-2)
