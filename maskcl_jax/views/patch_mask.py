"""Random masks over the patches of a view: a fixed number of patches is visible, as in MAE."""

import dataclasses
from typing import Any

import numpy as np

from maskcl_jax.views.base import Batch, Entry, Ingredient, View

KINDS = ("random", "noise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchMask(Ingredient):
    """A mask over the patches of one view, drawn independently for every image.

    Attributes:
        kind: "random" (draws `visible` and `masked`) or "noise" (draws `mask_noise`, from which the method chooses on
            the device).
        num_patches: N, the number of patches of the view.
        num_visible: patches that stay visible, 1 <= num_visible < N.
        block: with b > 1, b x b patches are masked or shown together (kind "random" only); the grid is then divisible
            by b and num_visible by b * b.
        grid: (rows, columns) of patches; needed with blocks.

    Source: facebookresearch/mae `random_masking`; blocks: ZhichengHuang/CMAE.

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> mask = mc.PatchMask(kind="random", num_patches=16, num_visible=4)
        >>> view = mc.View(crop=mc.CenterCrop(size=(32, 32)), ingredients=(mask,))
        >>> arrays = mask.sample(view, HostBatch((view,), seed=0, epoch=0, indices=np.arange(8)))
        >>> {name: value.shape for name, value in arrays.items()}
        {'visible': (8, 4), 'masked': (8, 12)}
    """

    kind: str
    num_patches: int
    num_visible: int
    block: int = 1
    grid: tuple[int, int] = (0, 0)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} of a PatchMask is unknown: use one of {', '.join(KINDS)}")

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """`visible` and `masked`, or `mask_noise`.

        Args:
            view: the view that has the ingredient.
            channels: of the images.

        Returns:
            {batch key: Entry}.
        """
        if self.kind == "noise":
            meaning = "uniform noise in [0, 1), where the mask is chosen on the device"
            return {view.key("mask_noise"): Entry((self.num_patches,), "float32", meaning)}
        masked = self.num_patches - self.num_visible
        return {
            view.key("visible"): Entry((self.num_visible,), "int32", "indices of the visible patches"),
            view.key("masked"): Entry((masked,), "int32", "indices of all other patches"),
        }

    def sample(self, view: View, batch: Batch) -> dict[str, Any]:
        """The argsort of uniform noise a patch (or a block, whose patches follow one another).

        Args:
            view: the view that has the ingredient.
            batch: the source of random numbers.

        Returns:
            {batch key: (B, ...) array}: int32 indices of patches, or float32 noise.
        """
        noise = batch.uniform(f"mask/{view.name}", (self.num_patches // self.block**2,))
        if self.kind == "noise":
            return {view.key("mask_noise"): noise}
        order = batch.xp.argsort(noise, axis=1, stable=True).astype(np.int32)
        if self.block > 1:
            order = patches_of_blocks(order, self.grid, self.block)
        return {view.key("visible"): order[:, : self.num_visible], view.key("masked"): order[:, self.num_visible :]}


def patches_of_blocks(blocks: Any, grid: tuple[int, int], block: int) -> Any:
    """Indices of blocks (B, n), row-major -> indices of their patches (B, n * block * block), block by block."""
    rows, columns = blocks // (grid[1] // block), blocks % (grid[1] // block)
    inside = np.arange(block)
    down = rows[:, :, None, None] * block + inside[:, None]
    across = columns[:, :, None, None] * block + inside
    return (down * grid[1] + across).reshape(len(blocks), -1).astype(np.int32)
