"""Patch masks, drawn on the host, one for every image of every view."""

import numpy as np

from maskcl_jax.data.randomness import per_example
from maskcl_jax.errors import UserError
from maskcl_jax.views import PatchMask, View


def draw(view: View, *, seed: int, epoch: int, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The mask entries of a batch for one view; empty where the view has no mask.

    indices: (B,) example indices. Kind "random" gives `visible` (B, num_visible) and `masked` (B, num_patches
    - num_visible), int32, together a permutation of the patches: the argsort of uniform noise, as in MAE (with
    blocks: of noise a block, whose patches follow one another).
    Kind "noise" gives that noise, `mask_noise` (B, num_patches) float32 in [0, 1).
    """
    mask = view.mask
    if mask is None:
        return {}
    generators = per_example(seed, f"mask/{view.name}", epoch=epoch, indices=indices)
    noise = np.empty((len(indices), draws(mask)), np.float32)
    for row, generator in zip(noise, generators, strict=True):
        generator.random(out=row, dtype=np.float32)
    return of_noise(view, noise)


def draws(mask: PatchMask) -> int:
    """Uniform numbers that the mask of one image is made from."""
    return mask.num_patches // mask.block**2


def of_noise(view: View, noise, xp=np) -> dict:
    """The mask entries that (B, `draws`) uniform numbers make; xp: numpy or jax.numpy."""
    mask = view.mask
    if mask.kind == "noise":
        return {view.key("mask_noise"): noise}
    if mask.kind != "random":
        raise UserError(f"mask kind {mask.kind!r} of view {view.name!r} is unknown: use 'random' or 'noise'")
    order = xp.argsort(noise, axis=1, stable=True).astype(np.int32)
    if mask.block > 1:
        order = patches_of_blocks(order, mask.grid, mask.block)
    visible, masked = order[:, : mask.num_visible], order[:, mask.num_visible :]
    return {view.key("visible"): visible, view.key("masked"): masked}


def patches_of_blocks(blocks, grid: tuple[int, int], block: int):
    """Numbers of blocks (B, n), row-major -> the numbers of their patches (B, n * block * block), block by block."""
    rows, columns = blocks // (grid[1] // block), blocks % (grid[1] // block)
    inside = np.arange(block)
    down = rows[:, :, None, None] * block + inside[:, None]
    across = columns[:, :, None, None] * block + inside
    return (down * grid[1] + across).reshape(len(blocks), -1).astype(np.int32)
