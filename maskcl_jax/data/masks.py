"""Patch masks, drawn on the host, one for every image of every view."""

import numpy as np

from maskcl_jax.data.randomness import per_example
from maskcl_jax.errors import UserError
from maskcl_jax.views import View


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
    noise = np.empty((len(indices), mask.num_patches // mask.block**2), np.float32)
    for row, generator in zip(noise, generators, strict=True):
        generator.random(out=row, dtype=np.float32)
    if mask.kind == "noise":
        return {view.key("mask_noise"): noise}
    if mask.kind != "random":
        raise UserError(f"mask kind {mask.kind!r} of view {view.name!r} is unknown: use 'random' or 'noise'")
    order = np.argsort(noise, axis=1, kind="stable").astype(np.int32)
    if mask.block > 1:
        order = patches_of_blocks(order, mask.grid, mask.block)
    visible, masked = np.split(order, [mask.num_visible], axis=1)
    return {view.key("visible"): visible, view.key("masked"): masked}


def patches_of_blocks(blocks: np.ndarray, grid: tuple[int, int], block: int) -> np.ndarray:
    """Numbers of blocks (B, n), row-major -> the numbers of their patches (B, n * block * block), block by block."""
    rows, columns = np.divmod(blocks, grid[1] // block)
    inside = np.arange(block)
    down = rows[:, :, None, None] * block + inside[:, None]
    across = columns[:, :, None, None] * block + inside
    return (down * grid[1] + across).reshape(len(blocks), -1).astype(np.int32)
