"""From the indices of images to pixels: every image is read and decoded once, and every view is cropped from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskcl_jax.data import decode
from maskcl_jax.data.sources import Split
from maskcl_jax.views.base import View
from maskcl_jax.views.batches import HostBatch


def load_views(batch: HostBatch, examples: Split, *, channels: int, exif: bool) -> dict[int, str]:
    """Reads and decodes the images of a batch once each, and crops every view from them.

    Args:
        batch: gets pixels and crops of all views.
        examples: a split of a source.
        channels: of the views.
        exif: whether images are turned as their EXIF orientation says.

    Returns:
        {slot: reason} of the images that cannot be read; their pixels are zeros.
    """
    items: list[Any] = []
    sizes, unreadable = np.ones((len(batch.indices), 2), np.int64), {}
    for slot, index in enumerate(batch.indices):
        try:
            items.append(examples[index])
            sizes[slot] = decode.image_size(items[slot], exif=exif)
        except Exception as error:  # the decoders raise a dozen types
            items[slot:] = [None]  # whether or not the image was appended
            unreadable[slot] = decode.reason_of(error)
    shifts = {}
    for view in batch.views.values():
        batch.crops[view.name] = view.crop.sample(view, batch, *sizes.T)
        batch.images[view.name] = np.zeros((len(items), *view.crop.size, channels), np.uint8)
        if view.crop.shift:
            batch.arrays[view.key("shift")] = shifts[view.name] = view.crop.sample_shift(view, batch)
    for slot, item in enumerate(items):
        if slot in unreadable:
            continue
        try:
            image = decode.decode(item, channels, exif=exif)
        except Exception as error:
            unreadable[slot] = decode.reason_of(error)
            continue
        for name, view in batch.views.items():
            shift = shifts[name][slot] if name in shifts else (0, 0)
            batch.images[name][slot] = cropped(image, view, batch.crops[name][slot], shift)
    return unreadable


def cropped(image: np.ndarray, view: View, crop: np.ndarray, shift: Sequence[int]) -> np.ndarray:
    """One view of an image (H, W, C) uint8: its crop (5,) resized, perhaps mirrored, the window at `shift` taken."""
    *box, flip = crop.tolist()
    (height, width), (down, across) = view.crop.size, shift
    resized = decode.crop_and_resize(
        image, box, size=view.crop.master or view.crop.size, interpolation=view.crop.interpolation, flip=bool(flip)
    )
    return resized[down : down + height, across : across + width]
