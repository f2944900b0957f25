"""How evaluation shows an image to the encoder, and whether a format's own preprocessing shows it likewise."""

import io
from typing import Any

import numpy as np
from PIL import Image

from maskcl_jax.data.decode import EXIF_ORIENTATION, crop_and_resize, decode
from maskcl_jax.data.sources.embedded import photographs
from maskcl_jax.errors import UserError
from maskcl_jax.interchange.product import Product
from maskcl_jax.views.base import View
from maskcl_jax.views.batches import HostBatch
from maskcl_jax.views.crop import CenterCrop

# Mean absolute difference in levels of 0..255: rounding, and libraries that resample in fixed point, stay below it.
LEVELS = 0.5
# Regions of scikit-image's photographs (top, left, height, width): square, landscape, portrait, long, tiny.
REGIONS = {
    "astronaut": (0, 0, 512, 512),
    "chelsea": (0, 0, 300, 451),
    "coffee": (0, 100, 400, 250),
    "rocket": (100, 0, 160, 640),
    "ihc": (40, 60, 41, 58),
}
TURNED = {"coffee": 6}  # EXIF orientation: the photograph is stored a quarter turn off


def preprocessing_words(p: Product) -> str:
    """What evaluation does to an image, for a README."""
    resize, (mean, std) = p.config.data.eval_resize, p.moments
    height, width = p.size
    how = (
        f"the whole image resized to {height}x{width}"
        if resize == 1.0
        else f"resized until it covers {resize:.4g} times {height}x{width}, the center of {height}x{width}"
    )
    turned = "turned as EXIF says (which no file beside the weights can state), " if p.config.data.exif else ""
    return f"{turned}{how} (bicubic, antialiased), pixels / 255, minus {mean}, divided by {std}"


def turning_lines(p: Product) -> str:
    """The Python that turns a PIL `image` as its EXIF orientation says; "" for a run that does not."""
    return "from PIL import ImageOps\nimage = ImageOps.exif_transpose(image)\n" if p.config.data.exif else ""


def example_files(channels: int) -> list[bytes]:
    """PNG files: photographs of several shapes, RGB or (channels=1) gray, one with an EXIF orientation."""
    sources = {file.stem: file for file in photographs()}
    files = []
    for name, (top, left, height, width) in REGIONS.items():
        with Image.open(sources[name]) as image:
            region = image.convert("RGB").crop((left, top, left + width, top + height))
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = TURNED.get(name, 1)
        file = io.BytesIO()
        (region.convert("L") if channels == 1 else region).save(file, "PNG", compress_level=0, exif=exif)
        files.append(file.getvalue())
    return files


def example_images(channels: int) -> list[Image.Image]:
    """The photographs of `example_files`, as Pillow opens them: not turned."""
    return [Image.open(io.BytesIO(file)) for file in example_files(channels)]


def evaluation_view(p: Product, file: bytes, *, shift: bool = False) -> np.ndarray:
    """(H, W, C) uint8: what the run's evaluation shows of a file; `shift`: half a pixel of it further down right."""
    pixels = decode(file, p.channels, exif=p.config.data.exif)
    view = View(crop=CenterCrop(size=p.size, resize=p.config.data.eval_resize))
    batch = HostBatch([view], seed=0, epoch=0, indices=np.zeros(1, np.int64))
    height, width = pixels.shape[:2]
    box = view.crop.sample(view, batch, np.array([height]), np.array([width]))[0, :4]
    if shift:
        steps = [max(1, round(length / (2 * size))) for length, size in zip(box[2:], p.size, strict=True)]
        top, left = min(box[0] + steps[0], height - box[2]), min(box[1] + steps[1], width - box[3])
        box = np.array([top, left, *box[2:]], box.dtype)
    return crop_and_resize(pixels, box, size=p.size, interpolation=view.crop.interpolation, flip=False)


def compare_preprocessing(p: Product, lines: str, namespace: dict[str, Any]) -> str:
    """Compares a format's preprocessing with the run's evaluation on photographs of several shapes.

    A format that rounds sizes and offsets to whole pixels may differ by what half a pixel makes.

    Args:
        p: The export.
        lines: Python that makes normalized `images` (1, C, H, W) of a PIL `image`.
        namespace: What the lines find besides `image`.

    Returns:
        What was compared, in words.

    Raises:
        UserError: Where an image differs by more.
    """
    largest = 0.0
    mean, std = (np.asarray(values, np.float32) for values in p.moments)
    examples = example_files(p.channels)
    for file in examples:
        image = Image.open(io.BytesIO(file))
        scope = namespace | {"image": image}
        exec(lines, scope)
        theirs = np.moveaxis(np.asarray(scope["images"], np.float32)[0], 0, -1)
        ours = evaluation_view(p, file).astype(np.float32)
        size = f"a photograph of {image.height}x{image.width}"
        if theirs.shape != ours.shape:
            raise UserError(f"--format={p.format}: its preprocessing makes {theirs.shape} of {size}, not {ours.shape}")
        difference = float(np.abs((theirs * std + mean) * 255 - ours).mean())
        limit = LEVELS
        if p.config.data.eval_resize != 1.0:
            limit = max(limit, float(np.abs(evaluation_view(p, file, shift=True) - ours).mean()))
        if not difference <= limit:
            raise UserError(
                f"--format={p.format}: its preprocessing is not the run's: {size} differs by {difference:.1f} of 255 "
                f"levels on average; the limit is {limit:.1f}"
            )
        largest = max(largest, difference)
    exact = "" if p.config.data.eval_resize == 1.0 else ", which half a pixel explains"
    return (
        f"preprocessing of {len(examples)} photographs of several shapes: at most {largest:.2f} of 255 levels from the "
        f"run's on average{exact}"
    )
