"""Boxes that two views of an image share: the same places, once in the pixels of each view."""

import dataclasses
from typing import Any

import numpy as np

from maskcl_jax.views.base import Batch, Entry, Ingredient, View
from maskcl_jax.views.crop import real


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes(Ingredient):
    """Boxes x0, y0, x1, y1 inside what two views both show.

    The view that has this ingredient needs a crop that leaves room for the smallest box: see `Overlap` in `crop`.

    Attributes:
        shared_with: the name of the other view, which must come earlier.
        count: R, boxes an image, drawn independently.
        side: range of their sides in that other view, as fractions of its shorter side, 0 < low <= high <= 1.
        ratio: range of width / height there, low <= 1 <= high.

    Example:
        >>> import maskcl_jax as mc
        >>> boxes = mc.Boxes(shared_with="query", count=4, side=(0.3, 0.5))
        >>> crop = mc.RandomResizedCrop(size=(32, 32), overlap=mc.Overlap(view="query", side=0.3))
        >>> key = mc.View(name="key", crop=crop, ingredients=(boxes,))
        >>> {name: entry.shape for name, entry in boxes.entries(key, channels=3).items()}
        {'query_boxes': (4, 4), 'key_boxes': (4, 4)}
    """

    shared_with: str
    count: int
    side: tuple[float, float]
    ratio: tuple[float, float] = (0.5, 2.0)

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """The boxes in the pixels of either view.

        Args:
            view: the view that has the ingredient.
            channels: of the images.

        Returns:
            {batch key: Entry}, one key for each of the two views.
        """
        entry = Entry((self.count, 4), "float32", "x0, y0, x1, y1 in pixels of that view: the same places of the image")
        return {f"{self.shared_with}_boxes": entry, view.key("boxes"): entry}

    def sample(self, view: View, batch: Batch) -> dict[str, Any]:
        """Boxes in the image, then in the pixels of both views.

        Args:
            view: the view that has the ingredient.
            batch: the crops of both views, and the source of random numbers.

        Returns:
            {batch key: (B, count, 4) float32}.
        """
        xp, other = batch.xp, batch.views[self.shared_with]
        crop, other_crop = batch.crops[view.name], batch.crops[other.name]
        numbers = batch.uniform(f"boxes/{view.name}", (self.count, 4), np.float64)
        boxes = self.choose(intersection(other_crop, crop, xp), other_crop, other.crop.size, numbers, xp)
        return {
            other.key("boxes"): in_view(boxes, other_crop, other.crop.size, xp).astype(np.float32),
            view.key("boxes"): in_view(boxes, crop, view.crop.size, xp).astype(np.float32),
        }

    def choose(self, common: Any, crop: Any, size: tuple[int, int], numbers: Any, xp: Any = np) -> Any:
        """Boxes inside a rectangle of the image: width, then height, then place, each uniform over what is allowed.

        Args:
            common: (B, 4), the rectangle as x0, y0, x1, y1 in pixels of the image.
            crop: (B, 5), of the view in which `side` and `ratio` are measured.
            size: of that view.
            numbers: (B, R, 4) uniform in [0, 1).
            xp: numpy or jax.numpy.

        Returns:
            (B, R, 4) in pixels of the image.
        """
        scale = xp.stack([crop[:, 3] / size[1], crop[:, 2] / size[0]], axis=-1)[:, None]  # image pixels a view pixel
        room = (common[:, None, 2:] - common[:, None, :2]) / scale
        low, high = (side * min(size) for side in self.side)
        narrow, wide = self.ratio
        most = xp.maximum(low, xp.minimum(high, room))  # rounding must not make it smaller than `low`
        width = _between(low, xp.minimum(most[..., 0], wide * most[..., 1]), numbers[..., 0])
        height = _between(xp.maximum(low, width / wide), xp.minimum(most[..., 1], width / narrow), numbers[..., 1])
        sides = xp.stack([width, height], axis=-1)
        corner = common[:, None, :2] + (room - sides) * numbers[..., 2:] * scale
        return xp.concatenate([corner, corner + sides * scale], axis=-1)


def intersection(one: Any, other: Any, xp: Any = np) -> Any:
    """What two crops (B, 5) share, (B, 4) in pixels of the image; x1 <= x0 or y1 <= y0 where that is nothing."""
    low = xp.maximum(one[:, :2], other[:, :2])
    high = xp.minimum(one[:, :2] + one[:, 2:4], other[:, :2] + other[:, 2:4])
    return xp.concatenate([low[:, ::-1], high[:, ::-1]], axis=1).astype(real(xp))


def in_view(boxes: Any, crop: Any, size: tuple[int, int], xp: Any = np) -> Any:
    """Boxes (B, R, 4) in pixels of the image -> in pixels of the view of `crop` (B, 5) and `size`."""
    top, left, height, width, mirrored = (crop[:, i, None].astype(real(xp)) for i in range(5))
    x0, x1 = ((boxes[..., i] - left) * size[1] / width for i in (0, 2))
    y0, y1 = ((boxes[..., i] - top) * size[0] / height for i in (1, 3))
    x0, x1 = xp.where(mirrored > 0, size[1] - x1, x0), xp.where(mirrored > 0, size[1] - x0, x1)
    return xp.stack([x0, y0, x1, y1], axis=-1)


def _between(low, high, fraction):
    return low + (high - low) * fraction
