"""Boxes in what two views of an image both show, drawn on the host, in the pixels of either view.

Which part of an image a view shows is a row `crop`: top, left, height, width in pixels of the image, and 1 where the
view is mirrored left-right. Boxes are rows x0, y0, x1, y1.
"""

import numpy as np

from maskcl_jax.data.randomness import per_example
from maskcl_jax.views import Boxes, View


def draw(views: list[View], shown: dict[str, np.ndarray], *, seed: int, epoch: int, indices) -> dict[str, np.ndarray]:
    """The `boxes` entries (B, R, 4) float32 of a batch, of every pair of views that share some.

    shown: {view name: crops (B, 5)} of those views. indices: (B,) example indices.
    """
    out, by_name = {}, {view.name: view for view in views}
    for view in views:
        if view.boxes is None:
            continue
        first = by_name[view.boxes.shared_with]
        noise = np.empty((len(indices), view.boxes.count, 4))
        generators = per_example(seed, f"boxes/{view.name}", epoch=epoch, indices=indices)
        for row, generator in zip(noise, generators, strict=True):
            generator.random(out=row)
        common = intersection(shown[first.name], shown[view.name])
        chosen = choose(view.boxes, common, shown[first.name], first.size, noise)
        for each in (first, view):
            out[each.key("boxes")] = in_view(chosen, shown[each.name], each.size).astype(np.float32)
    return out


def intersection(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What two crops (B, 5) share, (B, 4) in pixels of the image; x1 <= x0 or y1 <= y0 where that is nothing."""
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:4], other[:, :2] + other[:, 2:4])
    return np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1).astype(np.float64)


def choose(boxes: Boxes, common: np.ndarray, crop: np.ndarray, size: tuple[int, int], noise: np.ndarray) -> np.ndarray:
    """Boxes (B, R, 4) inside `common` (B, 4), in pixels of the image.

    Width, then height, then place, each uniform over what `boxes` allows in the view of `crop` and `size`, for which
    `common` must have room. noise: (B, R, 4) in [0, 1).
    """
    scale = np.stack([crop[:, 3] / size[1], crop[:, 2] / size[0]], axis=-1)[:, None]  # of the image, to one of the view
    room = (common[:, None, 2:] - common[:, None, :2]) / scale
    low, high = (share * min(size) for share in boxes.side)
    narrow, wide = boxes.ratio
    most = np.maximum(low, np.minimum(high, room))  # never below, for want of a last digit
    width = _between(low, np.minimum(most[..., 0], wide * most[..., 1]), noise[..., 0])
    height = _between(np.maximum(low, width / wide), np.minimum(most[..., 1], width / narrow), noise[..., 1])
    sides = np.stack([width, height], axis=-1)
    corner = common[:, None, :2] + (room - sides) * noise[..., 2:] * scale
    return np.concatenate([corner, corner + sides * scale], axis=-1)


def in_view(boxes: np.ndarray, crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (B, R, 4) in pixels of the image -> in pixels of the view of `crop` (B, 5) and `size`."""
    top, left, height, width, mirrored = (crop[:, i, None].astype(np.float64) for i in range(5))
    x0, x1 = ((boxes[..., i] - left) * size[1] / width for i in (0, 2))
    y0, y1 = ((boxes[..., i] - top) * size[0] / height for i in (1, 3))
    x0, x1 = np.where(mirrored > 0, size[1] - x1, x0), np.where(mirrored > 0, size[1] - x0, x1)
    return np.stack([x0, y0, x1, y1], axis=-1)


def _between(low, high, share):
    return low + (high - low) * share
