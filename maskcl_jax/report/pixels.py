"""Images as text: what lets one file hold a whole page."""

import base64
import io
import math

import numpy as np
from PIL import Image

SMALL = 64  # pixels: images up to this side are enlarged by the page, so they are stored without loss


def data_uri(image: np.ndarray, *, lossless: bool = True, quality: int = 85) -> str:
    """(H, W, 3 or 4) uint8 -> a WebP image as a `data:` address."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="WEBP", lossless=lossless, quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """(n, h, w, 3) uint8, made smaller where the longer side exceeds `side`."""
    height, width = images.shape[1:3]
    factor = side / max(height, width)
    if factor >= 1 or not len(images):
        return images
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in images])


def thumbnail(image: np.ndarray, side: int = 96) -> str:
    """One image (h, w, 3) uint8 of at most `side` pixels as an address."""
    small = shrink(image[None], side)[0]
    return data_uri(small, lossless=max(small.shape[:2]) <= SMALL)


def sprite(images: np.ndarray, *, columns: int = 0, gap: int = 0) -> np.ndarray:
    """Puts images side by side in rows.

    Args:
        images: (n, h, w, 3) uint8.
        columns: Of the sheet; 0 makes it about as wide as it is high.
        gap: Transparent pixels between them.

    Returns:
        (H, W, 3) uint8, or (H, W, 4) with a gap.
    """
    columns = columns or max(1, math.ceil(math.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width = images.shape[1] + gap, images.shape[2] + gap
    sheet = np.zeros((rows * height - gap, columns * width - gap, 4), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = np.dstack(
            [image, np.full(image.shape[:2], 255, np.uint8)]
        )
    return sheet if gap else sheet[..., :3]
