"""RoIAlign (He et al., Mask R-CNN, 2017) as two small matrices a box, one an axis: no gather, hence no scatter back."""

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


def roi_align(maps, boxes, *, scale: float, size: int, samples: int = 2):
    """Maps (B, H, W, C), boxes (B, R, 4) -> (B, R, size, size, C) float32.

    boxes: x0, y0, x1, y1 in pixels of the image; times `scale` (1 / stride) they are cells of the map. Each bin is the
    mean of samples x samples points, read bilinearly. As torchvision with aligned=True: a point more than a cell
    outside of the map counts 0, one less far outside is moved to the edge.
    """
    rows, columns = axis_weights(maps.shape, boxes, scale=scale, size=size, samples=samples)
    read = jnp.einsum("brih,bhwc->briwc", rows, maps.astype(jnp.float32), precision=HIGHEST)
    return jnp.einsum("brjw,briwc->brijc", columns, read, precision=HIGHEST)


def roi_mean(maps, boxes, *, scale: float, size: int, samples: int = 2):
    """The mean of `roi_align` over its bins, (B, R, C) float32, without making them: both are linear."""
    rows, columns = axis_weights(maps.shape, boxes, scale=scale, size=size, samples=samples)
    weights = rows.mean(axis=2)[..., :, None] * columns.mean(axis=2)[..., None, :]
    return jnp.einsum("brhw,bhwc->brc", weights, maps.astype(jnp.float32), precision=HIGHEST)


def axis_weights(shape, boxes, *, scale: float, size: int, samples: int):
    """What each row (B, R, size, H) and each column (B, R, size, W) of a map counts in each bin."""
    x0, y0, x1, y1 = jnp.moveaxis(boxes.astype(jnp.float32) * scale - 0.5, -1, 0)
    return along(y0, y1, shape[1], size, samples), along(x0, x1, shape[2], size, samples)


def along(start, end, length: int, size: int, samples: int):
    """Weights (B, R, size, length) of the cells of one axis, for boxes from start to end (B, R) in cells."""
    points = (jnp.arange(size * samples) + 0.5) / (size * samples)
    at = start[..., None] + (end - start)[..., None] * points
    counts = (at >= -1.0) & (at <= length)
    distance = jnp.abs(jnp.clip(at, 0.0, length - 1.0)[..., None] - jnp.arange(length))
    weights = jnp.where(counts[..., None], jnp.maximum(0.0, 1.0 - distance), 0.0)
    return weights.reshape(*start.shape, size, samples, length).mean(axis=-2)
