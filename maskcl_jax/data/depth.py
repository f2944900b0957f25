"""Images whose samples have not 8 bits: what their values mean, and files that Pillow reads wrongly or not at all.

16 bits become their high byte, as Pillow has it; floating point numbers of 0..1 become 0..255. Other numbers
are refused, because the value of white is unknown.
"""

import io
import struct
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageOps, UnidentifiedImageError

from maskcl_jax.errors import import_problem

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF 6.0, and some of their values.
BITS, PHOTOMETRIC, ORIENTATION, PLANES, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 274, 284, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
SEPARATE, SIGNED = 2, 2
ALPHA = {1: {2: "La", 4: "RGBa"}, 2: {2: "LA", 4: "RGBA"}}  # colors multiplied by it, or not; by number of samples
# Orientation: whether rows and columns are exchanged, and which axes are reversed afterwards.
ORIENTATIONS = {
    2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)),
    5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,)),
}  # fmt: skip
TWELVE_BITS = 4096


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Values of any type -> uint8; 8 bits stay as they are. Raises ValueError where it is not known what is white."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if _is_16_bits(pixels):
        warn_of_dark(int(pixels.max(initial=0)))
        return (pixels >> 8).astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"values of {pixels.dtype} have no known white: write uint8, uint16, or numbers of 0 to 1")
    low, high = float(pixels.min(initial=0)), float(pixels.max(initial=0))
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(f"floating point values lie in {low:g}..{high:g}: they must lie in 0..1, or write uint8")
    return np.round(pixels.astype(np.float32) * 255).astype(np.uint8)


def _is_16_bits(pixels: np.ndarray) -> bool:
    """Whether values are unsigned numbers of 16 bits, in either order of their bytes."""
    return pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2


def warn_of_dark(largest: int) -> None:
    """Says once that an image of 16 bits uses the lowest 12 of them only."""
    if 0 < largest < TWELVE_BITS:
        logging.log_first_n(
            logging.WARNING,
            "an image of 16 bits a channel has no value above %d: perhaps its data have 12 bits, and come out nearly "
            "black; multiply them by 16 (said once)",
            1,
            largest,
        )


def size_of(encoded: bytes) -> tuple[int, int]:
    """(height, width) of an image, by its header. Raises as `opened`, and ValueError for a TIFF that is damaged."""
    try:
        with Image.open(io.BytesIO(_not_empty(encoded))) as image:
            return image.height, image.width
    except UnidentifiedImageError:
        if encoded[:4] not in TIFF:
            raise
    with _tifffile().TiffFile(io.BytesIO(encoded)) as file:
        page = file.pages[0]
        _check_page(page)
        transposed, _ = _turn(page)
        return (page.imagewidth, page.imagelength) if transposed else (page.imagelength, page.imagewidth)


def _not_empty(encoded: bytes) -> bytes:
    if not encoded:
        raise ValueError("the file is empty (0 bytes)")
    return encoded


def opened(encoded: bytes) -> Image.Image:
    """An image as Pillow opens it; a TIFF that Pillow does not know, or reads wrongly, as tifffile reads it.

    Raises:
        ValueError: It is unknown which value is white, or which sample is which color.
        Exception: Whatever Pillow raises for what is no image.
    """
    try:
        image = Image.open(io.BytesIO(_not_empty(encoded)))
    except UnidentifiedImageError:
        if encoded[:4] not in TIFF:
            raise
        return _first_page(encoded)
    # Of planes of 16 bits Pillow takes the low bytes for pixels.
    wrong = _tags(image).get(PLANES) == SEPARATE and max(_tags(image).get(BITS, (8,))) > 8
    return _first_page(encoded) if wrong else image


def with_8_bits(image: Image.Image) -> Image.Image:
    """An image of Pillow's that is not loaded yet, with 8 bits a band. Raises ValueError as `to_8_bits`."""
    tags = _tags(image)
    bits = max(tags.get(BITS, (8,)))
    if SIGNED in tags.get(SAMPLE_FORMAT, ()) or (tags and image.mode == "I"):
        raise ValueError(f"{bits} bits, signed or more than 16, have no known white: write uint8, uint16 or 0 to 1")
    if _is_shortened(image):
        rest = -128 if image.format == "PPM" else 255  # Pillow rounds values of PPM
        warn_of_dark(256 * int(np.max(image.getextrema()[:3])) + rest)
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and np.max(transparent) > 255:  # of which Pillow would take the low bytes
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "I":  # 32 bits, of which PGM files use 16
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(f"values lie in {values.min()}..{values.max()}: they must lie in 0..65535, or write uint8")
        values = values.astype(np.uint16)
    values = values << 4 if bits == 12 else values
    if isinstance(transparent, int):  # of a PNG: this value is laid over white
        values = np.where(values == transparent, np.uint16(65535), values)
    pixels = Image.fromarray(to_8_bits(values))
    # Pillow applies it to 8 bits only.
    return ImageOps.invert(pixels) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else pixels


def with_alpha(image: Image.Image, encoded: bytes) -> Image.Image:
    """The image, with an alpha channel where it is a PNG of 16 bits in which one color is transparent.

    Pillow compares the high bytes of its pixels with the whole of that color.
    """
    color = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(color, tuple) or not _is_shortened(image):
        return image
    # Read as if the low byte came first, the low byte is what Pillow keeps.
    high, low = (_read_as(encoded, raw).astype(int) for raw in ("RGB;16B", "RGB;16L"))
    warn_of_dark(int((256 * high + low).max()))
    opaque = (256 * high + low != color).any(axis=-1, keepdims=True)
    return Image.fromarray(np.concatenate([high, 255 * opaque], axis=-1).astype(np.uint8))


def planes_of_npy(encoded: bytes) -> np.ndarray:
    """(H, W, C) uint8 of an array (H, W) or (H, W, C) in NumPy's format, of 8 or 16 bits."""
    pixels = np.load(io.BytesIO(encoded), allow_pickle=False)
    if pixels.ndim not in (2, 3) or not (pixels.dtype == np.uint8 or _is_16_bits(pixels)):
        raise ValueError(
            f"an array of {pixels.dtype} {pixels.shape}: it must be uint8 or uint16, (height, width, channels)"
        )
    return to_8_bits(pixels.reshape(*pixels.shape[:2], -1))


def planes_of_tiff(encoded: bytes) -> np.ndarray:
    """(H, W, C) uint8 of a TIFF: its samples, or where it has several pages those of all pages."""
    with _tifffile().TiffFile(io.BytesIO(encoded)) as file:
        return _turned_planes(file.series[0], file.pages[0])


def _first_page(encoded: bytes) -> Image.Image:
    """The first page of a TIFF, gray or RGB, perhaps with alpha."""
    with _tifffile().TiffFile(io.BytesIO(encoded)) as file:
        page = file.pages[0]
        pixels, photometric, extra = _turned_planes(page, page), int(page.photometric), (*page.extrasamples, 0)[0]
    samples = pixels.shape[-1]
    mode = {1: "L", 3: "RGB"}.get(samples) or ALPHA.get(int(extra), {}).get(samples)
    if mode is None or photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        raise ValueError(f"a TIFF of {samples} channels, photometric interpretation {photometric}: write gray or RGB")
    if photometric == WHITE_IS_ZERO:
        pixels = 255 - pixels
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())


def _turned_planes(part: Any, page: Any) -> np.ndarray:
    """(H, W, C) uint8 of a page or a series of pages, as the orientation of a page says."""
    _check_page(page)
    pixels, axes = part.asarray(), part.axes
    pixels = np.moveaxis(pixels, (axes.index("Y"), axes.index("X")), (0, 1))
    pixels = to_8_bits(pixels.reshape(*pixels.shape[:2], -1))
    transposed, reversed_axes = _turn(page)
    return np.flip(pixels.transpose(1, 0, 2) if transposed else pixels, reversed_axes)


def _turn(page: Any) -> tuple[bool, tuple[int, ...]]:
    """How a page is turned, see `ORIENTATIONS`."""
    return ORIENTATIONS.get(page.tags.valueof(ORIENTATION, 1), (False, ()))


def _check_page(page: Any) -> None:
    """Raises where a page claims too many pixels, or has lost tags."""
    if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
        raise Image.DecompressionBombError(f"it claims {page.imagewidth} x {page.imagelength} pixels")
    # Of a tag that it cannot read, tifffile takes the value that holds where it is not given.
    if BITS not in page.tags or len(page.tags) < _declared_tags(page):
        raise ValueError("a TIFF that has lost some of its tags: it is damaged")


def _declared_tags(page: Any) -> int:
    """How many tags a page says that it has."""
    layout, file = page.parent.tiff, page.parent.filehandle
    file.seek(page.offset)
    return struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))[0]


def _tifffile() -> Any:
    """The library; imported late, as it takes a tenth of a second and few need it."""
    if reason := import_problem("tifffile", "TiffFile"):
        raise ValueError(f"this TIFF needs tifffile, and {reason}")
    import tifffile

    return tifffile


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF, {} of other images."""
    return getattr(image, "tag_v2", {})


def _is_shortened(image: Image.Image) -> bool:
    """Whether an image in color, not loaded yet, has 16 bits, of which Pillow keeps the high byte."""
    arguments = [tile.args for tile in getattr(image, "tile", ())]
    return image.mode.startswith("RGB") and any(";16" in str(a) or a == ("RGB", 65535) for a in arguments)


def _read_as(encoded: bytes, raw_mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        return np.asarray(image)
