"""Blockwise masks of varying ratio: unions of random rectangles of patches, as BEiT, iBOT and I-JEPA draw them."""

import dataclasses
import math
from typing import Any

import numpy as np

from maskcl_jax.views.base import Batch, Entry, Ingredient, View


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockMask(Ingredient):
    """A boolean mask over the patches of one view, whose number of masked patches differs from image to image.

    Every image draws its own mask ratio, then rectangles, one after the other, until that fraction is masked. A
    rectangle that would mask too many patches is left out, so the ratio is reached up to the smallest rectangle.

    Attributes:
        grid: (rows, columns) of patches.
        ratio: range of the masked fraction, drawn uniformly.
        min_patches: area of the smallest rectangle.
        aspect: range of height / width of a rectangle, drawn log-uniformly.
        attempts: rectangles drawn an image.

    Source: Bao et al. 2022 (BEiT), algorithm 1; the varying ratio: Zhou et al. 2022 (iBOT), section 4.1.

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> mask = mc.BlockMask(grid=(8, 8), ratio=(0.2, 0.4))
        >>> view = mc.View(name="query", crop=mc.CenterCrop(size=(32, 32)), ingredients=(mask,))
        >>> masked = mask.sample(view, HostBatch((view,), seed=0, epoch=0, indices=np.arange(8)))["query_block_mask"]
        >>> masked.shape, bool((masked.mean(axis=1) <= 0.4).all())
        ((8, 64), True)
    """

    grid: tuple[int, int]
    ratio: tuple[float, float] = (0.1, 0.5)
    min_patches: int = 4
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    attempts: int = 32

    def __post_init__(self):
        low, high = self.ratio
        if not 0 <= low <= high < 1:
            raise ValueError(f"ratio={self.ratio} of a BlockMask is out of range: use 0 <= low <= high < 1")
        if not 1 <= self.min_patches <= math.prod(self.grid):
            raise ValueError(f"min_patches={self.min_patches} of a BlockMask does not fit the grid {self.grid}")

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """`block_mask`, one truth value a patch.

        Args:
            view: the view that has the ingredient.
            channels: of the images.

        Returns:
            {batch key: Entry}, one key.
        """
        meaning = "True where a patch is masked; their number differs from image to image"
        return {view.key("block_mask"): Entry((math.prod(self.grid),), "bool", meaning)}

    def sample(self, view: View, batch: Batch) -> dict[str, Any]:
        """Rectangles of random area, aspect and place, until each image's own ratio is reached.

        Args:
            view: the view that has the ingredient.
            batch: the source of random numbers.

        Returns:
            {batch key: (B, patches) bool}.
        """
        xp, (rows, columns) = batch.xp, self.grid
        numbers = batch.uniform(f"block_mask/{view.name}", (1 + 4 * self.attempts,))
        low, high = self.ratio
        target = (low + (high - low) * numbers[:, 0]) * (rows * columns)
        mask = xp.zeros((len(numbers), rows, columns), bool)
        for attempt in numbers[:, 1:].reshape(-1, self.attempts, 4).swapaxes(0, 1):
            larger = mask | self._rectangle(attempt, target, xp)
            fits = larger.sum(axis=(1, 2)) <= target
            mask = xp.where(fits[:, None, None], larger, mask)
        return {view.key("block_mask"): mask.reshape(len(numbers), -1)}

    def _rectangle(self, numbers, target, xp):
        """(B, rows, columns) bool: one rectangle an image, of area min_patches to `target`."""
        rows, columns = self.grid
        area = self.min_patches + xp.maximum(target - self.min_patches, 0.0) * numbers[:, 0]
        low, high = np.log(self.aspect)
        aspect = xp.exp(low + (high - low) * numbers[:, 1])
        height = xp.clip(xp.round(xp.sqrt(area * aspect)), 1, rows)
        width = xp.clip(xp.round(xp.sqrt(area / aspect)), 1, columns)
        top, left = xp.floor(numbers[:, 2] * (rows - height + 1)), xp.floor(numbers[:, 3] * (columns - width + 1))
        down, across = np.arange(rows)[:, None], np.arange(columns)
        top, left, height, width = (x[:, None, None] for x in (top, left, height, width))
        return (down >= top) & (down < top + height) & (across >= left) & (across < left + width)
