"""The user's own saliency maps: files beside a folder of training images."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from maskcl_jax.errors import UserError

ENDINGS = (".npy", ".png")  # the first that exists counts


class SaliencyMaps:
    """One map an image: `class/name.jpg` under the images' root has `class/name.npy` or `.png` under `folder`.

    A map has the height and width of its image: a 2-D array of numbers, or an image, of which the gray level counts.
    Larger is more salient.
    """

    def __init__(self, folder: str, examples: Any, root: str):
        """Finds the map of every image, and reads the first.

        Args:
            folder: of the maps.
            examples: the training images, whose `name(i)` is a path.
            root: the folder of the images.

        Raises:
            UserError: a map is missing or does not fit.
        """
        base = pathlib.Path(folder).expanduser()
        if not base.is_dir():
            raise UserError(f"method.maps_path={folder!r} is not a folder: give the one that holds the maps")
        known = {
            os.path.relpath(os.path.join(where, name), base)
            for where, _, names in os.walk(base, followlinks=True)
            for name in names
        }
        self._images, self._maps = [examples.name(i) for i in range(len(examples))], []
        for image in self._images:
            stem = os.path.splitext(os.path.relpath(image, pathlib.Path(root).expanduser()))[0]
            found = [stem + ending for ending in ENDINGS if stem + ending in known]
            if not found:
                raise UserError(
                    f"method.maps_path={folder!r} has no map for {image}: it needs {stem}{' or '.join(ENDINGS)}"
                )
            self._maps.append(base / found[0])
        self._read(0)

    def cells(self, indices: np.ndarray, crops: np.ndarray, grid: int) -> np.ndarray:
        """The mean of the map over every cell of a view.

        Args:
            indices: (B,), of the images.
            crops: (B, 5), of the view: see `crop`.
            grid: cells along each side.

        Returns:
            (B, grid, grid) float32.
        """
        return np.stack([self._cells(i, crop, grid) for i, crop in zip(indices, crops.tolist(), strict=True)])

    def _cells(self, index: int, crop_and_flip: Sequence[int], grid: int) -> np.ndarray:
        top, left, height, width, flip = crop_and_flip
        crop = Image.fromarray(self._read(index)[top : top + height, left : left + width])
        cells = np.asarray(crop.resize((grid, grid), Image.Resampling.BOX))
        return cells[:, ::-1] if flip else cells

    def _read(self, index: int) -> np.ndarray:
        """(H, W) float32. Raises UserError where it cannot be read or is not of the size of its image."""
        path, image = self._maps[index], self._images[index]
        try:
            if path.suffix == ".npy":
                pixels = np.load(path, allow_pickle=False)
            else:
                with Image.open(path) as opened:
                    pixels = np.asarray(opened if opened.mode.startswith("I") else opened.convert("L"))
            pixels = np.ascontiguousarray(pixels, np.float32)
        except (OSError, EOFError, ValueError, TypeError, SyntaxError) as error:
            empty = path.is_file() and not path.stat().st_size
            problem = "is empty (0 bytes)" if empty else f"cannot be read ({type(error).__name__})"
            raise UserError(f"the map {path} {problem}: write it again") from None
        expected = _size(image, otherwise=pixels.shape)
        if pixels.shape != expected or not np.isfinite(pixels).all():
            raise UserError(
                f"the map {path} is {'x'.join(map(str, pixels.shape))} and its image {image} "
                f"{'x'.join(map(str, expected))}: make it of finite numbers and as large as the image"
            )
        return pixels


def _size(image: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """(height, width) of an image file; `otherwise` where it cannot be read, and so never gets into a batch."""
    try:
        with Image.open(image) as opened:
            return opened.size[::-1]
    except OSError:
        return otherwise
