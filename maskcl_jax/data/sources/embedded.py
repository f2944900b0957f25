"""Real photographs from the wheels of scikit-image and scikit-learn, cropped into labeled tiles: no network.

The label of a tile is its photograph. Train and test never share a pixel: every photograph is covered by a grid of
blocks, one block in five is for testing, and a training tile keeps GAP pixels away from all of them. Neighboring tiles
of one split overlap. Tiles with almost no contrast (sky, black borders) are left out: only their mean tells which
photograph they come from.
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from maskcl_jax.data.decode import to_channels
from maskcl_jax.data.sources.base import SPLITS, Arrays, Source
from maskcl_jax.errors import UserError
from maskcl_jax.views.randomness import generator

PHOTOGRAPHS = {
    "skimage": [
        *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png"),
        *("gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png"),
        *("retina.jpg", "rocket.jpg", "text.png"),
    ],
    "sklearn": ["china.jpg", "flower.jpg"],
}
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

TILE = 48  # pixels: a crop of a fifth of its area still has 21 a side for a 32-pixel view
BLOCK = 64  # side of the blocks of the train/test grid
GAP = 8  # pixels between any training tile and any test block
STRIDE = {"train": 8, "test": 4}
PER_CLASS = {"train": 400, "test": 80}  # at most
MIN_STD = 6.0  # gray levels


class EmbeddedSource(Source):
    """Eighteen photographs as eighteen classes of tiles of TILE x TILE pixels."""

    def __init__(self, data_config: Any):
        super().__init__()
        files = photographs()
        self.class_names = tuple(file.stem for file in files)
        self.num_classes = len(files)
        pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        self._opened = {split: self._tiles(pixels, split, data_config.channels) for split in SPLITS}
        counts = {split: len(tiles) for split, tiles in self._opened.items()}
        self.description = (
            f"embedded, {counts['train']} training and {counts['test']} test tiles of "
            f"{TILE}x{TILE}x{data_config.channels} from {self.num_classes} photographs"
        )

    def load(self, split: str) -> Arrays:
        return self._opened[split]

    def _tiles(self, pixels: Sequence[np.ndarray], split: str, channels: int) -> Arrays:
        corners = [tile_corners(image, split, name) for image, name in zip(pixels, self.class_names, strict=True)]
        tiles = [image[y : y + TILE, x : x + TILE] for image, of in zip(pixels, corners, strict=True) for y, x in of]
        labels = np.repeat(np.arange(self.num_classes, dtype=np.int32), [len(of) for of in corners])
        return Arrays(to_channels(np.stack(tiles), channels), labels)


def photographs() -> list[pathlib.Path]:
    """The files of the photographs, in the order of their labels. Raises UserError where one is missing."""
    files = []
    for package, names in PHOTOGRAPHS.items():
        # find_spec, not an import: scikit-image takes a second to import and its loaders may download.
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(
                f"data.source='embedded' needs the package {package}: pip install scikit-image scikit-learn"
            )
        folder = pathlib.Path(spec.origin).parent / FOLDERS[package]
        files += [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise UserError(f"data.source='embedded' misses {file}: install scikit-image and scikit-learn again")
    return files


def held_out_blocks(height: int, width: int) -> np.ndarray:
    """Corners (top, left) of the test blocks of a photograph, (n, 2): a knight's move apart, whole."""
    rows, columns = np.mgrid[: height // BLOCK, : width // BLOCK]
    chosen = (columns + 2 * rows) % 5 == 2
    return np.stack([rows[chosen], columns[chosen]], axis=1) * BLOCK


def tile_corners(pixels: np.ndarray, split: str, name: str) -> np.ndarray:
    """Chooses the tiles of one photograph.

    Args:
        pixels: (H, W, 3) uint8.
        split: "train" or "test".
        name: Of the photograph; seeds the choice where there are more tiles than enough.

    Returns:
        (n, 2) corners (top, left), n <= PER_CLASS[split].
    """
    height, width = pixels.shape[:2]
    blocks = held_out_blocks(height, width)
    if split == "test":
        offsets = np.arange(0, BLOCK - TILE + 1, STRIDE["test"])
        inside = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
        corners = (blocks[:, None] + inside).reshape(-1, 2)
    else:
        tops = np.arange(0, height - TILE + 1, STRIDE["train"])
        lefts = np.arange(0, width - TILE + 1, STRIDE["train"])
        corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
        distance = corners[:, None] - blocks[None]
        near = ((distance > -TILE - GAP) & (distance < BLOCK + GAP)).all(axis=-1)
        corners = corners[~near.any(axis=1)]
    # The large photographs have 30,000 places for a tile: a few times what is needed is enough to look at.
    corners = generator(0, f"tiles/{name}/{split}").permutation(corners)[: 4 * PER_CLASS[split]]
    return corners[_contrast(pixels, corners) >= MIN_STD][: PER_CLASS[split]]


def _contrast(pixels: np.ndarray, corners: np.ndarray) -> np.ndarray:
    gray = pixels.mean(axis=-1)
    return np.array([gray[y : y + TILE, x : x + TILE].std() for y, x in corners])
