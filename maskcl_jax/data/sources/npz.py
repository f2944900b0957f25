"""Images of one size and their labels in one .npz file: nothing to decode."""

import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskcl_jax.data.sources.base import PREFIX, SPLITS, Arrays, Source, digest_of
from maskcl_jax.errors import UserError


class NpzSource(Source):
    """The arrays `train_images` and `test_images`, (N, H, W) or (N, H, W, C) uint8, of the file `path`.

    Beside them `train_labels` and `test_labels`, N integers from 0, and `class_names`, where there are any; `images`
    and `labels` only are training images. MedMNIST's files are of this kind; `data.to_array` writes it. The
    description names arrays that are not used, such as MedMNIST's `val_images`.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        path = pathlib.Path(data_config.path)
        if not path.is_file():
            raise UserError(f"data.path={data_config.path!r} is not a file: give a .npz of images")
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read as a .npz of arrays: {error}") from None
        self._opened = {split: _split(path, arrays, split) for split in SPLITS}
        if not len(self._opened["train"]):
            raise UserError(f"{path} has no array train_images or images: it has {', '.join(arrays) or 'nothing'}")
        found = max(int(split.labels.max(initial=-1)) for split in self._opened.values()) + 1
        self.class_names = tuple(map(str, arrays.get("class_names", range(found))))
        if len(self.class_names) < found:
            raise UserError(f"{path} has labels up to {found - 1}, but {len(self.class_names)} class_names")
        self.num_classes = len(self.class_names) if found else 0
        shape = "x".join(map(str, self._opened["train"].images.shape[1:]))
        used = [*(name for split in SPLITS for name in _names(arrays, split)), "class_names"]
        unused = [f"{name} of {len(array)}" for name, array in arrays.items() if name not in used and array.ndim]
        notes = [f"not used: {', '.join(unused)}"] if unused else []
        self.description = self.describe(f"{path.name} of {shape}", notes)

    def load(self, split: str) -> Arrays:
        return self._opened[split]

    def facts(self, splits: Sequence[str] = SPLITS) -> dict[str, int | str]:
        """Those of every source, and digests of the pixels, which have no names, as pixels and test_pixels."""
        pixels = {f"{PREFIX[split]}pixels": digest_of(self._opened[split].images) for split in splits}
        return super().facts(splits) | pixels


def _names(arrays: dict[str, np.ndarray], split: str) -> tuple[str, str]:
    """What the arrays of a split are called: those of training perhaps only `images` and `labels`."""
    prefix = "" if split == "train" and "train_images" not in arrays else f"{split}_"
    return f"{prefix}images", f"{prefix}labels"


def _split(path: pathlib.Path, arrays: dict[str, np.ndarray], split: str) -> Arrays:
    """The images and labels of a split: empty where there is none, -1 where images have no label."""
    of_images, of_labels = _names(arrays, split)
    images = arrays.get(of_images, np.zeros((0, 1, 1, 1), np.uint8))
    labels = arrays.get(of_labels, np.full(len(images), -1))
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(
            f"{path}: the {split} images are {images.dtype} {images.shape}: they must be uint8 (N, H, W, C)"
        )
    labels = labels.reshape(-1) if labels.size == len(images) else labels
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or (labels < -1).any():
        raise UserError(
            f"{path}: the {split} labels are {labels.dtype} {labels.shape} for {len(images)} images: there must be one "
            "integer from 0 for each"
        )
    return Arrays(images, labels.astype(np.int32))
