"""Views of an image and their ingredients: one file an ingredient. Start with `base`."""

from maskcl_jax.views.base import IMAGE, Batch, Crop, Entry, Ingredient, View, batch_entries, batch_shapes, describe
from maskcl_jax.views.block_mask import BlockMask
from maskcl_jax.views.boxes import Boxes
from maskcl_jax.views.cell_mask import CellMask, CellRule
from maskcl_jax.views.color import Color
from maskcl_jax.views.crop import CenterCrop, Overlap, RandomResizedCrop
from maskcl_jax.views.patch_mask import PatchMask
from maskcl_jax.views.randaugment import RandAugment

__all__ = [
    "IMAGE",
    "Batch",
    "BlockMask",
    "Boxes",
    "CellMask",
    "CellRule",
    "CenterCrop",
    "Color",
    "Crop",
    "Entry",
    "Ingredient",
    "Overlap",
    "PatchMask",
    "RandAugment",
    "RandomResizedCrop",
    "View",
    "batch_entries",
    "batch_shapes",
    "describe",
]
