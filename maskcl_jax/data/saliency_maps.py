"""Maps of how salient the pixels of the training images are, files of the user's beside a folder of images."""

import os
import pathlib

import numpy as np
from PIL import Image

from maskcl_jax.data import crops
from maskcl_jax.data.sources import Encoded
from maskcl_jax.errors import UserError
from maskcl_jax.views import View

ENDINGS = (".npy", ".png")  # the first that exists counts


class SalientMaps:
    """One map an image: `class/name.jpg` under the images' root has `class/name.npy` or `.png` under `folder`.

    A map has the height and width of its image: a 2-D array of numbers, or a picture, of which the grey level counts.
    Larger is more salient. The box and the mirroring of a view are applied to its map: both are functions of (seed,
    epoch, index), so nothing need be handed on from where the pixels were cropped.
    """

    def __init__(self, folder: str, split: Encoded, root: str):
        """split: the training images. root: their folder. Raises UserError where a map is missing or does not fit."""
        base = pathlib.Path(folder).expanduser()
        if not base.is_dir():
            raise UserError(f"method.maps_path={folder!r} is not a folder: give the one that holds the maps")
        known = {
            os.path.relpath(os.path.join(where, name), base)
            for where, _, names in os.walk(base, followlinks=True)
            for name in names
        }
        self._images, self._maps = list(split.payloads), []
        for image in self._images:
            stem = os.path.splitext(os.path.relpath(image, pathlib.Path(root).expanduser()))[0]
            found = [stem + ending for ending in ENDINGS if stem + ending in known]
            if not found:
                raise UserError(
                    f"method.maps_path={folder!r} has no map for {image}: it needs {stem}{' or '.join(ENDINGS)}"
                )
            self._maps.append(base / found[0])
        self._read(0)

    def of(self, view: View, *, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(B, G, G) float32: the mean of the map over every cell of the view of each image."""
        draws = crops.draw(view, seed=seed, epoch=epoch, indices=indices)
        return np.stack(
            [
                self._cells(view, self._read(index), noise, flip)
                for index, noise, flip in zip(indices, draws.noise, draws.flip, strict=True)
            ]
        )

    def _cells(self, view: View, pixels: np.ndarray, noise, flip) -> np.ndarray:
        top, left, height, width = crops.box(view, noise, *pixels.shape)
        crop = Image.fromarray(pixels[top : top + height, left : left + width])
        cells = np.asarray(crop.resize((view.cells.grid,) * 2, Image.Resampling.BOX))
        return cells[:, ::-1] if flip else cells

    def _read(self, index: int) -> np.ndarray:
        """(H, W) float32. Raises UserError where it cannot be read or has not the size of its image."""
        path, image = self._maps[index], self._images[index]
        try:
            if path.suffix == ".npy":
                pixels = np.load(path, allow_pickle=False)
            else:
                with Image.open(path) as opened:
                    pixels = np.asarray(opened if opened.mode.startswith("I") else opened.convert("L"))
            pixels = np.ascontiguousarray(pixels, np.float32)
        except (OSError, ValueError, TypeError, SyntaxError) as error:
            raise UserError(f"the map {path} cannot be read ({type(error).__name__}): write it again") from None
        wanted = _size(image, otherwise=pixels.shape)
        if pixels.shape != wanted or not np.isfinite(pixels).all():
            raise UserError(
                f"the map {path} is {'x'.join(map(str, pixels.shape))} and its image {image} "
                f"{'x'.join(map(str, wanted))}: make it of finite numbers and as large as the image"
            )
        return pixels


def _size(image: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """(height, width) of an image file; `otherwise` where it cannot be read, and so never gets into a batch."""
    try:
        with Image.open(image) as opened:
            return opened.size[::-1]
    except OSError:
        return otherwise
