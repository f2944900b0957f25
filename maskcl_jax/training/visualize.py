"""Figures: images in a grid, one row per image and one titled column per stage, as PNG."""

import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 96  # pixels: the least shorter side of an image in the grid
GAP = 4
TITLE = 16  # height of the titles
BACKGROUND = (255, 255, 255)


def grid(columns: Mapping[str, np.ndarray], *, max_rows: int = 8) -> np.ndarray:
    """Draws a figure.

    Small images are enlarged without smoothing. One channel is shown as gray; of two channels the third is empty, of
    more than three the first three are shown. A title that is wider than its images widens all columns.

    Args:
        columns: {title: (B, h, w, C) floats}; clipped to 0..1, NaN is black.
        max_rows: Images per column.

    Returns:
        (H, W, 3) uint8.
    """
    cells = {title: enlarge(to_rgb(images[:max_rows])) for title, images in columns.items()}
    font = ImageFont.load_default()
    rows = max(map(len, cells.values()))
    height = max(images.shape[1] for images in cells.values()) + GAP
    width = max(max(images.shape[2], math.ceil(font.getlength(title))) for title, images in cells.items()) + GAP
    canvas = Image.new("RGB", (GAP + len(cells) * width, TITLE + GAP + rows * height), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for c, (title, images) in enumerate(cells.items()):
        left = GAP + c * width
        pen.text((left, 3), title, fill=(0, 0, 0), font=font)
        for r, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (left, TITLE + GAP + r * height))
    return np.asarray(canvas)


def cells(figure: np.ndarray, columns: int, size: tuple[int, int]) -> np.ndarray | None:
    """Takes a figure apart again.

    Args:
        figure: (H, W, 3) uint8, as `grid` drew it.
        columns: How many it has.
        size: (height, width) of the images.

    Returns:
        (columns, rows, height, width, 3) uint8, at the images' own size; None for a figure of another form.
    """
    factor = enlargement(size)
    height, width = size[0] * factor, size[1] * factor
    pitch, spare = divmod(figure.shape[1] - GAP, columns)
    rows, rest = divmod(figure.shape[0] - TITLE - GAP, height + GAP)
    if spare or rest or not rows or pitch < width + GAP:
        return None
    tops = [TITLE + GAP + r * (height + GAP) for r in range(rows)]
    lefts = [GAP + c * pitch for c in range(columns)]
    return np.stack([[figure[y : y + height : factor, x : x + width : factor] for y in tops] for x in lefts])


def to_rgb(images: np.ndarray) -> np.ndarray:
    """(B, h, w, C) float in 0..1 -> (B, h, w, 3) uint8."""
    images = np.nan_to_num(np.asarray(images, np.float32))
    channels = images.shape[-1]
    if channels == 1:
        images = np.repeat(images, 3, axis=-1)
    elif channels == 2:
        images = np.concatenate([images, np.zeros_like(images[..., :1])], axis=-1)
    return np.round(np.clip(images[..., :3], 0.0, 1.0) * 255).astype(np.uint8)


def enlarge(images: np.ndarray) -> np.ndarray:
    """Repeats pixels until the shorter side has at least CELL."""
    factor = enlargement(images.shape[1:3])
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def enlargement(size: tuple[int, ...]) -> int:
    """How often a pixel of images of (height, width) is repeated on either side."""
    return max(1, -(-CELL // min(size)))


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 as a whole file or not at all, and creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(image).save(temporary, format="PNG")
    os.replace(temporary, path)
