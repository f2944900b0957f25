"""Data sets that lie in memory: checked, and kept as a file, so that commands and resumed runs find them again."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskcl_jax.data.sources import SPLITS
from maskcl_jax.errors import UserError

NAMES = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))


def is_arrays(data: Any) -> bool:
    """Whether `data` is images in memory: an array, (images, labels), or a dict of arrays."""
    return isinstance(data, Mapping | tuple) or hasattr(data, "__array__")


def named(data: Any) -> dict[str, np.ndarray]:
    """The arrays of a data set under the names that an `npz` data set has.

    Args:
        data: Images, (images, labels), or a dict with `train_images` and perhaps `train_labels`, `test_images`,
            `test_labels` and `class_names`. Images: (N, H, W, C) or (N, H, W) uint8. Labels: (N,) integers from 0, -1
            for none.

    Raises:
        UserError: The images are not of this kind, or a name is unknown.
    """
    if isinstance(data, tuple):
        if len(data) != 2:
            raise UserError(f"data is a tuple of {len(data)}: give (images, labels), or a dict with {', '.join(NAMES)}")
        data = dict(zip(("train_images", "train_labels"), data, strict=True))
    elif not isinstance(data, Mapping):
        data = {"train_images": data}
    arrays = {name: np.asarray(value) for name, value in data.items()}
    if unknown := sorted(arrays.keys() - {*NAMES, "class_names"}):
        raise UserError(f"data has {unknown[0]!r}, which no data set has: use {', '.join(NAMES)} and class_names")
    if "train_images" not in arrays:
        raise UserError("data has no train_images: give (N, H, W, C) uint8")
    for split in SPLITS:
        images = arrays.get(f"{split}_images")
        if images is None:
            continue
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
            raise UserError(
                f"data: {split}_images is {images.dtype} {images.shape}: give uint8 of shape (N, H, W, C), N at least 1"
            )
        arrays[f"{split}_images"] = images if images.ndim == 4 else images[..., None]
    return arrays


def save(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes the arrays to a .npz file, which may be there already with the same content.

    Raises:
        UserError: The file holds other arrays.
    """
    if path.exists():
        with np.load(path) as stored:
            same = set(stored.files) == set(arrays) and all(
                np.array_equal(stored[name], arrays[name]) for name in arrays
            )
        if not same:
            raise UserError(f"{path} holds other images than those given: give another workdir, or the same images")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    np.savez(beside, **arrays)  # type: ignore[arg-type]
    os.replace(beside, path)


def moments(images: np.ndarray) -> dict[str, tuple[float, ...]]:
    """`data.mean` and `data.std` of images (N, H, W, C) uint8, one value a channel, in 0..1."""
    pixels = images.reshape(-1, images.shape[-1])
    pixels = pixels[:: max(1, len(pixels) // 1_000_000)] / 255  # a million pixels are enough for three digits
    mean, std = pixels.mean(axis=0), pixels.std(axis=0).clip(1e-3)
    return {"data.mean": tuple(mean.round(3).tolist()), "data.std": tuple(std.round(3).tolist())}
