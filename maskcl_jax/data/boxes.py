"""Boxes in what two views of an image both show, drawn on the host, in the pixels of either view.

Which part of an image a view shows is a row `crop`: top, left, height, width in pixels of the image, and 1 where the
view is mirrored left-right. Boxes are rows x0, y0, x1, y1.
"""

import numpy as np

from maskcl_jax.data.crops import real
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
        out |= of_noise(first, view, shown, noise)
    return out


def of_noise(first: View, view: View, shown: dict, noise, xp=np) -> dict:
    """The boxes that two views share, of (B, R, 4) uniform numbers; xp: numpy or jax.numpy."""
    one, other = shown[first.name], shown[view.name]
    chosen = choose(view.boxes, intersection(one, other, xp), one, first.size, noise, xp)
    found = {each.key("boxes"): in_view(chosen, shown[each.name], each.size, xp) for each in (first, view)}
    return {key: placed.astype(np.float32) for key, placed in found.items()}


def intersection(one, other, xp=np):
    """What two crops (B, 5) share, (B, 4) in pixels of the image; x1 <= x0 or y1 <= y0 where that is nothing."""
    low = xp.maximum(one[:, :2], other[:, :2])
    high = xp.minimum(one[:, :2] + one[:, 2:4], other[:, :2] + other[:, 2:4])
    return xp.concatenate([low[:, ::-1], high[:, ::-1]], axis=1).astype(real(xp))


def choose(boxes: Boxes, common, crop, size: tuple[int, int], noise, xp=np):
    """Boxes (B, R, 4) inside `common` (B, 4), in pixels of the image.

    Width, then height, then place, each uniform over what `boxes` allows in the view of `crop` and `size`, for which
    `common` must have room. noise: (B, R, 4) in [0, 1).
    """
    scale = xp.stack([crop[:, 3] / size[1], crop[:, 2] / size[0]], axis=-1)[:, None]  # of the image, to one of the view
    room = (common[:, None, 2:] - common[:, None, :2]) / scale
    low, high = (share * min(size) for share in boxes.side)
    narrow, wide = boxes.ratio
    most = xp.maximum(low, xp.minimum(high, room))  # never below, for want of a last digit
    width = _between(low, xp.minimum(most[..., 0], wide * most[..., 1]), noise[..., 0])
    height = _between(xp.maximum(low, width / wide), xp.minimum(most[..., 1], width / narrow), noise[..., 1])
    sides = xp.stack([width, height], axis=-1)
    corner = common[:, None, :2] + (room - sides) * noise[..., 2:] * scale
    return xp.concatenate([corner, corner + sides * scale], axis=-1)


def in_view(boxes, crop, size: tuple[int, int], xp=np):
    """Boxes (B, R, 4) in pixels of the image -> in pixels of the view of `crop` (B, 5) and `size`."""
    top, left, height, width, mirrored = (crop[:, i, None].astype(real(xp)) for i in range(5))
    x0, x1 = ((boxes[..., i] - left) * size[1] / width for i in (0, 2))
    y0, y1 = ((boxes[..., i] - top) * size[0] / height for i in (1, 3))
    x0, x1 = xp.where(mirrored > 0, size[1] - x1, x0), xp.where(mirrored > 0, size[1] - x0, x1)
    return xp.stack([x0, y0, x1, y1], axis=-1)


def _between(low, high, share):
    return low + (high - low) * share
