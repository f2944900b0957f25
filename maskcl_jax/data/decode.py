"""From an encoded image to pixels: decoding, channels, cropping and resizing.

Pillow defines what a file shows and how it is resized. simplejpeg decodes JPEGs to the same pixels in 3/4 of the time;
cykooz.resizer resizes crops of 500 x 375 to 224 x 224 in 1/4 and of 48 x 48 to 32 x 32 in 1/2 of Pillow's time, within
one level of Pillow's pixels (its weights have 16 bits where Pillow's have 22: at a large cubic overshoot, one pixel in
100,000 is two levels off). Where one is not installed, Pillow does its work.
"""

import contextlib
import functools
import importlib
import io
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskcl_jax.data import depth
from maskcl_jax.errors import first_line, import_problem

# Why a library that is faster than Pillow cannot be used, "" where it can.
PROBLEMS = {
    "simplejpeg": import_problem("simplejpeg", "decode_jpeg", "decode_jpeg_header"),
    "cykooz_resizer": import_problem(
        *("cykooz_resizer", "Resizer", "ImageData", "ResizeOptions", "ResizeAlg.convolution"),
        *("PixelType.U8", "PixelType.U8x3", "FilterType.bilinear", "FilterType.catmull_rom"),
    ),
}
simplejpeg: Any
cykooz_resizer: Any
simplejpeg, cykooz_resizer = (None if problem else importlib.import_module(name) for name, problem in PROBLEMS.items())

# Of the files that are images: what `decode` reads, as far as the installed Pillow does.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".npy")
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
JPEG, JPEG_END, NPY = b"\xff\xd8\xff", b"\xff\xd9", b"\x93NUMPY"
COLORSPACE = {1: "GRAY", 3: "RGB"}
EXIF_ORIENTATION = 0x0112
MAX_PIXELS = 2**29  # 1.5 GB as RGB; a file that claims more is an attack or damaged
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow raises at twice this number
_OF_THREAD = threading.local()


def image_size(image: bytes | np.ndarray, *, exif: bool = False) -> tuple[int, int]:
    """(height, width) of an image, by its header where it is encoded. Raises as `decode`."""
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    size = _size_in_header(image)
    return size[::-1] if exif and depth.ORIENTATIONS.get(_orientation(image), (False,))[0] else size


def _size_in_header(encoded: bytes) -> tuple[int, int]:
    if (header := _plain_jpeg(encoded)) is not None:
        return header[:2]
    if encoded[:6] == NPY:
        return depth.planes_of_npy(encoded).shape[:2]
    return depth.size_of(encoded)


def decode(image: bytes | np.ndarray, channels: int, *, exif: bool = False) -> np.ndarray:
    """Decodes an image.

    With 1 or 3 channels: of an animation or a file of several pages the first one; transparency is laid over white;
    CMYK becomes RGB. With any other number the file must have that many: TIFF of so many samples or pages, `.npy` of
    (H, W, C), or an image of so many bands, which are taken as they are. `depth` says what becomes of other values than
    those of 8 bits.

    Args:
        image: A file that Pillow knows, or an array in NumPy's format; or (H, W, C) uint8, see `to_channels`.
        channels: Of the result.
        exif: Whether to turn the image as its EXIF orientation says; torchvision's ImageFolder and timm do not.

    Returns:
        (H, W, channels) uint8. From a JPEG in color to one channel: its own luminance, within 3 levels of Pillow's.

    Raises:
        ValueError: Another number of channels than wanted, values whose white is unknown, among others.
        Exception: Whatever Pillow raises (OSError, SyntaxError, ...) for a corrupt or truncated file.
    """
    if isinstance(image, np.ndarray):
        return to_channels(image, channels)
    pixels = _decode(image, channels)
    if exif and (orientation := _orientation(image)) in depth.ORIENTATIONS:
        transposed, reversed_axes = depth.ORIENTATIONS[orientation]
        pixels = np.flip(pixels.transpose(1, 0, 2) if transposed else pixels, reversed_axes)
    return pixels


def _decode(encoded: bytes, channels: int) -> np.ndarray:
    if encoded[:6] == NPY:
        return _exactly(depth.planes_of_npy(encoded), channels)
    if channels not in COLORSPACE and encoded[:4] in depth.TIFF:
        return _exactly(depth.planes_of_tiff(encoded), channels)
    if channels in COLORSPACE and _plain_jpeg(encoded) is not None:
        with contextlib.suppress(ValueError):  # damaged: Pillow decides whether it can be read all the same
            return simplejpeg.decode_jpeg(encoded, COLORSPACE[channels], strict=True)
    return decode_with_pillow(encoded, channels)


def _plain_jpeg(encoded: bytes) -> tuple[Any, ...] | None:
    """The header of a complete JPEG, gray or in three colors: (height, width, ...); None for all else.

    A file that does not end with the end-of-image marker is left to Pillow, which tells harmless from truncated.
    """
    if simplejpeg is None or encoded[:3] != JPEG or encoded[-2:] != JPEG_END:
        return None
    try:
        header = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if header[2] not in ("Gray", "YCbCr", "RGB") or header[0] * header[1] > MAX_PIXELS:
        return None
    return header


def decode_with_pillow(encoded: bytes, channels: int) -> np.ndarray:
    """`decode` by Pillow alone."""
    with depth.opened(encoded) as image:
        return pixels_of(depth.with_alpha(image, encoded) if channels in COLORSPACE else image, channels)


def pixels_of(image: Image.Image, channels: int) -> np.ndarray:
    """An image of Pillow's -> (H, W, channels) uint8, by the rules of `decode`. Raises ValueError as that does."""
    image = depth.with_8_bits(image)
    if channels not in COLORSPACE:
        return _exactly(np.atleast_3d(depth.to_8_bits(np.asarray(image))), channels)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        # Pillow knows no direct way from gray that is multiplied by its alpha.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if image.mode == "LAB":  # for which Pillow knows no direct way to gray
        image = image.convert("RGB")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _exactly(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.shape[-1] != channels:
        raise ValueError(f"{pixels.shape[-1]} channels where data.channels={channels}")
    return pixels


def _orientation(encoded: bytes) -> int:
    """The EXIF orientation, 1 for none. Of a TIFF, Pillow turns the pixels itself."""
    if encoded[:4] in depth.TIFF or not any(mark in encoded for mark in (b"Exif", b"eXIf", b"EXIF")):
        return 1
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises a dozen types for damaged metadata, without which the image is whole
        return 1


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """(..., C) uint8 to (..., channels).

    RGB to gray by luminance (ITU-R 601, as Pillow and JPEG), any other number to one by the mean; gray and RGB to more
    channels by repetition.
    """
    have = images.shape[-1]
    if have == channels:
        return images
    if channels == 1:
        weights = np.array([0.299, 0.587, 0.114]) if have == 3 else np.full(have, 1 / have)
        return np.round(images.astype(np.float32) @ weights.astype(np.float32)).astype(np.uint8)[..., None]
    return images[..., np.arange(channels) % have]


def crop_and_resize(
    image: np.ndarray, box: Sequence[int], *, size: tuple[int, int], interpolation: str, flip: bool
) -> np.ndarray:
    """Crops an image, resizes the crop (antialiased, rounded) and mirrors it left-right where wanted.

    Args:
        image: (H, W, C) uint8.
        box: Top, left, height, width of the crop in pixels.
        size: (height, width) of the result.
        interpolation: "bicubic" or "bilinear".
        flip: Whether to mirror.

    Returns:
        (*size, C) uint8.
    """
    top, left, height, width = box
    # Crop first: Pillow's own `box=` would let the filter see pixels outside of the crop.
    pixels = resize(image[top : top + height, left : left + width], size, interpolation)
    return _mirrored(pixels) if flip else pixels


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes (H, W, C) uint8 to (*size, C) by the antialiased filters of Pillow."""
    if image.shape[:2] == tuple(size):
        return image
    if image.shape[-1] in (1, 3):
        return _resize(image, size, interpolation)
    planes = np.split(image, image.shape[-1], axis=-1)
    return np.concatenate([_resize(plane, size, interpolation) for plane in planes], axis=-1)


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    height, width, channels = image.shape
    if cykooz_resizer is None:
        plane = np.ascontiguousarray(image[..., 0] if channels == 1 else image)
        resized = Image.fromarray(plane).resize((size[1], size[0]), RESAMPLING[interpolation])
        return np.asarray(resized).reshape(*size, channels)
    kind, options = _resizing(channels, interpolation)
    if not hasattr(_OF_THREAD, "resizer"):
        _OF_THREAD.resizer = cykooz_resizer.Resizer()  # keeps its buffers
    pixels = cykooz_resizer.ImageData(width, height, kind, image.tobytes())
    for side in ((size[1], height), (size[1], size[0]))[_height_first(height, width, size) :]:
        pixels, whole = cykooz_resizer.ImageData(*side, kind), pixels
        _OF_THREAD.resizer.resize(whole, pixels, options)
    return np.frombuffer(pixels.get_buffer(), np.uint8).reshape(*size, channels)


def _height_first(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether Pillow (from version 13) resizes the height before the width, as cykooz.resizer does in a single call.

    Between the two passes pixels are clipped to 0..255: near black and white, the order changes a cubic by 30 levels.
    """
    return height - size[0] > max(0, 2 * (width - size[1]))


@functools.cache
def _resizing(channels: int, interpolation: str) -> tuple[Any, Any]:
    kind = {1: cykooz_resizer.PixelType.U8, 3: cykooz_resizer.PixelType.U8x3}[channels]
    filters = {"bicubic": cykooz_resizer.FilterType.catmull_rom, "bilinear": cykooz_resizer.FilterType.bilinear}
    algorithm = cykooz_resizer.ResizeAlg.convolution(filters[interpolation])
    return kind, cykooz_resizer.ResizeOptions(resize_alg=algorithm)


def _mirrored(image: np.ndarray) -> np.ndarray:
    out = np.empty_like(image, order="C")
    for channel in range(image.shape[-1]):  # numpy takes five times as long for all at once
        out[..., channel] = image[:, ::-1, channel]
    return out


def reason_of(error: Exception) -> str:
    """One line that says why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a format that Pillow knows"
    text = first_line(error, 200)
    return f"{type(error).__name__}: {text}" if str(error).strip() else text
