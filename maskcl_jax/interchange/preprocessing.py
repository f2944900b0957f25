"""How evaluation shows an image to the encoder, and whether a format's own preprocessing shows it likewise."""

from typing import Any

import numpy as np
from PIL import Image

from maskcl_jax.data.decode import crop_and_resize
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


def preprocessing_words(p: Product) -> str:
    """What evaluation does to an image, for a README."""
    resize, (mean, std) = p.config.data.eval_resize, p.moments
    height, width = p.size
    how = (
        f"the whole image resized to {height}x{width}"
        if resize == 1.0
        else f"resized until it covers {resize:.4g} times {height}x{width}, the center of {height}x{width}"
    )
    return f"{how} (bicubic, antialiased), pixels / 255, minus {mean}, divided by {std}"


def example_images(channels: int) -> list[Image.Image]:
    """Photographs of several shapes, RGB or (channels=1) gray."""
    files = {file.stem: file for file in photographs()}
    images = []
    for name, (top, left, height, width) in REGIONS.items():
        with Image.open(files[name]) as image:
            region = image.convert("RGB").crop((left, top, left + width, top + height))
        images.append(region.convert("L") if channels == 1 else region)
    return images


def evaluation_view(p: Product, image: Image.Image, *, shift: bool = False) -> np.ndarray:
    """(H, W, C) uint8: what the run's evaluation shows of an image; `shift`: half a pixel of it further down right."""
    pixels = np.atleast_3d(np.asarray(image))
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
        p: the export.
        lines: Python that makes normalized `images` (1, C, H, W) of a PIL `image`.
        namespace: what the lines find besides `image`.

    Returns:
        What was compared, in words.

    Raises:
        UserError: where an image differs by more.
    """
    largest = 0.0
    mean, std = (np.asarray(values, np.float32) for values in p.moments)
    examples = example_images(p.channels)
    for image in examples:
        scope = namespace | {"image": image}
        exec(lines, scope)
        theirs = np.moveaxis(np.asarray(scope["images"], np.float32)[0], 0, -1)
        ours = evaluation_view(p, image).astype(np.float32)
        size = f"a photograph of {image.height}x{image.width}"
        if theirs.shape != ours.shape:
            raise UserError(f"--format={p.format}: its preprocessing makes {theirs.shape} of {size}, not {ours.shape}")
        difference = float(np.abs((theirs * std + mean) * 255 - ours).mean())
        limit = LEVELS
        if p.config.data.eval_resize != 1.0:
            limit = max(limit, float(np.abs(evaluation_view(p, image, shift=True) - ours).mean()))
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
