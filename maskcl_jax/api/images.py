"""From whatever is given as images (paths, folders, PIL images, arrays, lists) to the pixels that an encoder takes."""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from maskcl_jax.data import decode, loading
from maskcl_jax.data.sources.folder import find_images
from maskcl_jax.errors import UserError
from maskcl_jax.views.base import IMAGE, View
from maskcl_jax.views.batches import HostBatch
from maskcl_jax.views.crop import CenterCrop

PART = 16  # images that one thread reads at a time


def as_list(images: Any, channels: int) -> tuple[Any, bool]:
    """(a sequence of images, whether a single image was given instead of a batch).

    Raises:
        UserError: There is no image, or there is an array of another shape, dtype or range than images have.
    """
    if isinstance(images, str | os.PathLike) and os.path.isdir(images):
        files = find_images(pathlib.Path(images))
        if not files:
            raise UserError(f"folder {os.fspath(images)} has no images ({', '.join(decode.EXTENSIONS)})")
        return files, False
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        return [images], True
    if hasattr(images, "__array__"):
        array = np.asarray(images)
        single = array.ndim in (2, 3)
        if single:
            array = array[None]
        if array.ndim == 3:
            array = array[..., None]
        if not len(array):
            raise UserError(f"images are {array.dtype} {array.shape}: give at least one image")
        return as_uint8(array, channels), single
    if not isinstance(images, Iterable):
        raise UserError(
            f"images are of type {type(images).__name__}: give paths, PIL images, arrays, or a list of them"
        )
    found = list(images)
    if not found:
        raise UserError("images is an empty list: give at least one image")
    return found, False


def as_uint8(images: np.ndarray, channels: int) -> np.ndarray:
    """An array (N, H, W, C) of uint8, or of floating point numbers in 0..1, as uint8. Raises UserError for others."""
    if images.ndim != 4 or images.shape[-1] != channels:
        turned = images.ndim == 4 and images.shape[1] == channels
        remedy = "the channels are the last dimension: transpose (0, 2, 3, 1)" if turned else f"give {channels}"
        raise UserError(
            f"images of shape {images.shape} have not {channels} channels, which the encoder takes: {remedy}"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images are {images.dtype}: give uint8, or floating point numbers in 0..1")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UserError(f"floating point images lie in {low:g}..{high:g}: they must lie in 0..1, or give uint8")
    return np.round(images * 255).astype(np.uint8)


class Opened(Sequence):
    """Images as `loading.load_views` reads them: encoded, or decoded to (H, W, C) uint8."""

    def __init__(self, images: Sequence[Any], channels: int, *, exif: bool) -> None:
        self.images, self.channels, self.exif = images, channels, exif

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        image = self.images[index]
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (self.channels,):
            return image
        if isinstance(image, bytes):
            return image
        if isinstance(image, str | os.PathLike):
            return pathlib.Path(image).read_bytes()
        if isinstance(image, Image.Image):
            turned = ImageOps.exif_transpose(image) if self.exif else image
            return decode.pixels_of(turned, self.channels)
        if hasattr(image, "__array__"):
            ((pixels,), _) = as_list(image, self.channels)
            return pixels
        raise UserError(f"it is of type {type(image).__name__}: give paths, PIL images, arrays, or a list of them")

    def name(self, index: int) -> str:
        """What to call an image in an error."""
        image = self.images[index]
        return f"image {os.fspath(image)}" if isinstance(image, str | os.PathLike) else f"image {index}"


def read(images: Sequence[Any], data_config: Any) -> np.ndarray:
    """Reads images and crops them as evaluations do.

    Args:
        images: Paths, encoded images, PIL images or arrays.
        data_config: `config.data`: size, channels, `eval_resize`, `exif` and `threads`.

    Returns:
        (N, height, width, channels) uint8.

    Raises:
        UserError: One of them cannot be read; names it.
    """
    channels, exif = data_config.channels, data_config.exif
    opened: Any = Opened(images, channels, exif=exif)
    view = View(crop=CenterCrop(size=tuple(data_config.image_size), resize=data_config.eval_resize))

    def part(start: int) -> np.ndarray:
        indices = np.arange(start, min(start + PART, len(opened)))
        batch = HostBatch([view], seed=0, epoch=0, indices=indices)
        unreadable = loading.load_views(batch, opened, channels=channels, exif=exif)
        for slot, reason in unreadable.items():
            name = opened.name(indices[slot])
            raise UserError(
                f"{name} cannot be read ({reason.removeprefix('UserError: ')}): give another, or leave it out"
            )
        return batch.images[IMAGE]

    with concurrent.futures.ThreadPoolExecutor(data_config.threads or os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(part, range(0, len(opened), PART))))
