"""Grids of pictures as PNG: one row an image, one titled column a stage."""

import os
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 96  # pixels that a cell measures at least
GAP = 4
BACKGROUND = 255


def grid(columns: dict[str, np.ndarray], *, max_rows: int = 8) -> np.ndarray:
    """(H, W, 3) uint8 from {title: (B, h, w, C) float in 0..1}; values outside are clipped.

    Small images are enlarged without smoothing. One channel is shown grey; of more than three the first three,
    of two both and an empty third.
    """
    cells = {title: enlarge(to_rgb(images[:max_rows])) for title, images in columns.items()}
    rows, height, width = next(iter(cells.values())).shape[:3]
    title_height = 16
    canvas = Image.new(
        "RGB",
        (GAP + len(cells) * (width + GAP), title_height + GAP + rows * (height + GAP)),
        (BACKGROUND,) * 3,
    )
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for c, (title, images) in enumerate(cells.items()):
        left = GAP + c * (width + GAP)
        pen.text((left, 3), title, fill=(0, 0, 0), font=font)
        for r, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (left, title_height + GAP + r * (height + GAP)))
    return np.asarray(canvas)


def to_rgb(images: np.ndarray) -> np.ndarray:
    """(B, h, w, C) float in 0..1 -> (B, h, w, 3) uint8."""
    channels = images.shape[-1]
    if channels == 1:
        images = np.repeat(images, 3, axis=-1)
    elif channels == 2:
        images = np.concatenate([images, np.zeros_like(images[..., :1])], axis=-1)
    return np.round(np.clip(images[..., :3], 0.0, 1.0) * 255).astype(np.uint8)


def enlarge(images: np.ndarray) -> np.ndarray:
    """Repeats pixels until the shorter side measures at least CELL."""
    factor = max(1, -(-CELL // min(images.shape[1:3])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(image).save(beside, format="PNG")
    os.replace(beside, path)
