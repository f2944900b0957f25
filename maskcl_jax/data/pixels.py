"""Pixels: any image file to uint8, channels, and the crop of an image in memory.

Pillow defines what an image file shows and how it is resized. Two small libraries do the same for JPEGs and for large
crops, several times faster; where one is not installed, Pillow does its work.
"""

import functools
import io
import re
import threading

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskcl_jax.data.jpeg_header import with_height
from maskcl_jax.errors import UserError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import cykooz_resizer as resizer
except ImportError:
    resizer = None

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
JPEG, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_OF_THREAD = threading.local()  # buffers that threads keep from image to image
BELOW = 1  # row more: where colours have half the height, they are interpolated with the row below
REST_NOT_READ = "extraneous bytes before marker 0xd9"  # libjpeg's words for a rest, all rows decoded
COLORSPACE = {1: ("GRAY", "GRAY"), 3: ("RGB", "BGR")}  # of channels: forwards, backwards


def size_of(encoded: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) of a decoded image, or of an image file, from its header. Raises as `decode`."""
    if isinstance(encoded, np.ndarray):
        return encoded.shape[:2]
    if (header := _plain_jpeg(encoded)) is not None:
        return header[:2]
    with Image.open(io.BytesIO(encoded)) as image:
        return image.height, image.width


def decode(encoded: bytes | np.ndarray, channels: int, *, backwards: bool = False) -> np.ndarray:
    """Decodes an image file: (H, W, channels) uint8, channels 1 or 3, as `decode_with_pillow`.

    From a JPEG in colours to one channel: its own luminance, within 3 levels of Pillow's.
    """
    if isinstance(encoded, np.ndarray):
        return to_channels(encoded, channels)
    if _plain_jpeg(encoded) is not None:
        try:
            return simplejpeg.decode_jpeg(encoded, COLORSPACE[channels][backwards], strict=True)
        except ValueError:
            pass  # damaged: Pillow knows what can be saved
    return decode_with_pillow(encoded, channels, backwards=backwards)


def decode_top(encoded: bytes, channels: int, rows: int, *, backwards: bool = False) -> np.ndarray:
    """The first rows of `decode`, or more: (at least rows, W, channels) uint8. rows: from 1 to the image's height.

    Most JPEGs are decoded no further than needed, so that damage below the rows is not found. The pixels may be
    overwritten by the thread's next image (new memory for each costs a quarter of the time).
    """
    if (header := _plain_jpeg(encoded)) is None:
        return decode_with_pillow(encoded, channels, backwards=backwards)
    (height, width), rows = header[:2], rows + BELOW
    short = with_height(encoded, rows) if rows < height else None
    size = (rows if short else height) * width * channels
    options = {"colorspace": COLORSPACE[channels][backwards], "strict": True, "buffer": _buffer(size)}
    try:
        return simplejpeg.decode_jpeg(short or encoded, **options)
    except ValueError as error:
        if short and REST_NOT_READ in str(error):
            return np.frombuffer(options["buffer"], np.uint8, size).reshape(rows, width, channels)
    return (decode if short else decode_with_pillow)(encoded, channels, backwards=backwards)


def _buffer(size: int) -> bytearray:
    """Memory of this thread, at least so many bytes of it."""
    if len(getattr(_OF_THREAD, "buffer", b"")) < size:
        _OF_THREAD.buffer = bytearray(size)
    return _OF_THREAD.buffer


def _plain_jpeg(encoded: bytes):
    """The header of a complete JPEG, grey or in three colours: (height, width, ...); None for all else.

    A file that does not end with the end-of-image marker is left to Pillow, which tells harmless from truncated.
    """
    if simplejpeg is None or encoded[:3] != JPEG or encoded[-2:] != JPEG_END:
        return None
    try:
        header = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    return header if header[2] in ("Gray", "YCbCr", "RGB") else None


def decode_with_pillow(encoded: bytes, channels: int, *, backwards: bool = False) -> np.ndarray:
    """Decodes an image file that Pillow knows: (H, W, channels) uint8, channels 1 or 3.

    backwards: the channels in reverse, for `mirrored`. Of an animation the first frame. Transparency is laid over
    white. 16 bits a channel are scaled to 8. CMYK becomes RGB. An EXIF orientation is ignored, as TFDS and
    torchvision's ImageFolder do. Raises whatever Pillow raises (OSError, ValueError, SyntaxError, ...) for a corrupt or
    truncated file.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        if image.mode.startswith("I"):
            image = Image.fromarray(_to_8_bit(np.asarray(image)))
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("L" if channels == 1 else "RGB")
    data = image.tobytes("raw", "BGR" if backwards and channels == 3 else image.mode)
    return np.frombuffer(data, np.uint8).reshape(image.height, image.width, channels)


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


def fast_resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """(H, W, C) uint8, C 1 or 3, to (*size, C): by Pillow's antialiased filters.

    Within 2 levels of Pillow's pixels (the weights have 16 bits), and further only where the cubic overshoots black or
    white: of the two passes, between which that is cut off, the other one comes first.
    """
    if image.shape[:2] == tuple(size):
        return image
    height, width, channels = image.shape
    if resizer is None:
        box = np.array([0, 0, height, width])
        return crop_and_resize(image, box, size=size, interpolation=interpolation, flip=False)
    kind, options = _resizing(channels, interpolation)
    if not hasattr(_OF_THREAD, "resizer"):
        _OF_THREAD.resizer = resizer.Resizer()  # keeps its buffers
    out = resizer.ImageData(size[1], size[0], kind)
    _OF_THREAD.resizer.resize(resizer.ImageData(width, height, kind, image.tobytes()), out, options)
    return np.frombuffer(out.get_buffer(), np.uint8).reshape(*size, channels)


@functools.cache
def _resizing(channels: int, interpolation: str):
    kind = {1: resizer.PixelType.U8, 3: resizer.PixelType.U8x3}[channels]
    filters = {"bicubic": resizer.FilterType.catmull_rom, "bilinear": resizer.FilterType.bilinear}
    return kind, resizer.ResizeOptions(resize_alg=resizer.ResizeAlg.convolution(filters[interpolation]))


def mirrored(image: np.ndarray, *, backwards: bool) -> np.ndarray:
    """Left and right exchanged: (H, W, C) uint8 to new memory. backwards: channels come in reverse, and are put right.

    That is the bytes of each row in reverse: quick, eight at once. Triples in reverse take four times as long.
    """
    rows = image.reshape(len(image), -1)
    if (backwards or image.shape[-1] == 1) and rows.shape[1] % 8 == 0:
        return rows.view(">u8")[:, ::-1].astype("<u8").view(np.uint8).reshape(image.shape)
    out = np.empty(image.shape, np.uint8)
    for channel in range(image.shape[-1]):  # numpy takes twice as long for all at once
        out[..., channel] = image[:, ::-1, -1 - channel if backwards else channel]
    return out


def check_interpolation(name: str) -> None:
    """Raises UserError for an interpolation that no view can have."""
    if name not in RESAMPLING:
        raise UserError(f"augment.interpolation={name!r} is unknown: use {' or '.join(RESAMPLING)}")


def reason_of(error: Exception) -> str:
    """One line that says what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a format that Pillow knows"
    text = re.sub(r"<?[\w.]+ object at 0x[0-9a-f]+>?", "it", str(error))
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]
