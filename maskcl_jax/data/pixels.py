"""Pixels in numpy and Pillow: any image file to uint8, channels, and the crop of an image in memory."""

import io

import numpy as np
from PIL import Image

from maskcl_jax.errors import UserError

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decodes an image file that Pillow knows: (H, W, channels) uint8, channels 1 or 3.

    Of an animation the first frame. Transparency is laid over white. 16 bits a channel are scaled to 8. CMYK
    becomes RGB. An EXIF orientation is ignored, as TFDS and torchvision's ImageFolder do. Raises whatever
    Pillow raises (OSError, ValueError, SyntaxError, ...) for a corrupt or truncated file.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        if image.mode.startswith("I"):
            image = Image.fromarray(_to_8_bit(np.asarray(image)))
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    return np.round(np.clip(pixels, 0, 65535) / 257).astype(np.uint8)


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """(..., C) uint8 to (..., channels).

    RGB to grey by luminance (ITU-R 601, as Pillow and JPEG), any other number to one by the mean; grey and
    RGB to more channels by repetition.
    """
    have = images.shape[-1]
    if have == channels:
        return images
    if channels == 1:
        weights = np.array([0.299, 0.587, 0.114]) if have == 3 else np.full(have, 1 / have)
        return np.round(images.astype(np.float32) @ weights.astype(np.float32)).astype(np.uint8)[..., None]
    return images[..., np.arange(channels) % have]


def crop_and_resize(
    image: np.ndarray, box: np.ndarray, *, size: tuple[int, int], interpolation: str, flip: bool
) -> np.ndarray:
    """Cuts a box out of an image, resizes it (antialiased, rounded) and perhaps mirrors it left-right.

    image: (H, W, C) uint8. box: top, left, height, width. size: (height, width). Returns (*size, C) uint8.
    """
    top, left, height, width = box
    # Cut first: Pillow's own `box=` would let the filter see pixels outside of the crop.
    crop = image[top : top + height, left : left + width]
    channels = image.shape[-1]
    planes = [crop] if channels == 3 else [crop[..., c] for c in range(channels)]
    resized = [_resize(np.ascontiguousarray(plane), size, interpolation) for plane in planes]
    pixels = resized[0] if channels == 3 else np.stack(resized, axis=-1)
    return pixels[:, ::-1] if flip else pixels


def _resize(plane: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    if plane.shape[:2] == tuple(size):
        return plane
    return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), RESAMPLING[interpolation]))


def check_interpolation(name: str) -> None:
    """Raises UserError for an interpolation that no view can have."""
    if name not in RESAMPLING:
        raise UserError(f"augment.interpolation={name!r} is unknown: use {' or '.join(RESAMPLING)}")
