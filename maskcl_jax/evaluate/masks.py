"""Masks as files: the value of every pixel, unless their format or colors have changed it."""

import io
import pathlib

import numpy as np
from PIL import Image

from maskcl_jax.errors import UserError

LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")  # Pillow's names; of WEBP and TIFF only some kinds
LOSSY_IN_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")  # compressions, by Pillow's names

Item = str | bytes  # a file path, or an encoded image


def read(item: Item, kind: str) -> bytes:
    """The bytes of a file, or those that are already here. Raises UserError where there are none."""
    content = pathlib.Path(item).read_bytes() if isinstance(item, str) else item
    if not content:
        raise UserError(f"{item if isinstance(item, str) else kind} is empty (0 bytes): remove it")
    return content


def decode_mask(item: Item) -> np.ndarray:
    """The values of a mask.

    Args:
        item: A file or its content: palette numbers, gray values, or channels that are all equal.

    Returns:
        (H, W) integers.

    Raises:
        UserError: Where it cannot be read, its compression changes values, or its channels differ: colors that stand
            for classes would have to be translated first.
    """
    name = item if isinstance(item, str) else "a mask"
    content = read(item, "a mask")
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind, compression = image.format or "", image.info.get("compression", "")
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name} cannot be read as a mask ({type(error).__name__}): give PNG files") from None
    in_tiff = kind == "TIFF" and compression in LOSSY_IN_TIFF
    if kind in LOSSY or in_tiff or (kind == "WEBP" and is_lossy_webp(content)):
        words = f"{compression.upper()} inside TIFF" if in_tiff else kind
        raise UserError(f"{name} is a mask in {words}, which changes values to save space: give PNG files")
    if values.ndim == 3:
        values = single_channel(values, name)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        if not (values == np.round(values)).all():
            raise UserError(f"{name} is a mask of fractions, from {values.min():g} to {values.max():g}: give integers")
        return values.astype(np.int32)
    return values


def is_lossy_webp(content: bytes) -> bool:
    """Whether the image in a WebP file, whose chunks are walked, has the lossy compression."""
    place = 12  # behind RIFF, the size and WEBP
    while place + 8 <= len(content):
        kind, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        place += 24 if kind == b"ANMF" else 8 + size + size % 2  # a frame's chunks follow its 16 bytes
    return True


def single_channel(values: np.ndarray, name: str) -> np.ndarray:
    """The one channel (H, W) of a mask (H, W, C) whose channels are equal, a constant alpha channel aside."""
    alpha = values[..., -1] if values.shape[-1] in (2, 4) else values[:1, :1, 0]
    color = values[..., :-1] if values.shape[-1] in (2, 4) else values
    if (color != color[..., :1]).any() or (alpha != alpha.flat[0]).any():
        found = np.unique(values.reshape(-1, values.shape[-1]), axis=0)
        shown = ", ".join(str(tuple(row)) for row in found[:4].tolist()) + (", ..." if len(found) > 4 else "")
        raise UserError(
            f"{name} is a mask of {len(found)} colors ({shown}), not of class numbers: convert it to one channel, a "
            "number for each class"
        )
    return color[..., 0]
