"""RandAugment as timm's `rand-m9-mstd0.5-inc1` has it: what MAE and CMAE fine-tune with. Pillow, on the host."""

import concurrent.futures
import os

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from maskcl_jax.data.randomness import per_example
from maskcl_jax.errors import UserError
from maskcl_jax.views import View

LEVELS = 10.0  # the largest magnitude
BICUBIC = Image.Resampling.BICUBIC


def affine(image, matrix, fill):
    """A place (x, y) of the result shows the place matrix (x, y, 1) of the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=fill)


def enhanced(kind):
    """Brightness and its like: a factor below or above 1, the further the larger the level."""
    return lambda image, level, sign, fill: kind(image).enhance(max(0.1, 1.0 + sign * 0.9 * level))


def posterized(image, level, sign, fill):
    """The highest bits of each pixel: 4 at level 0, none at 1."""
    return ImageOps.posterize(image, 4 - int(level * 4))


def solarized(image, level, sign, fill):
    """Inverted from a threshold on."""
    return ImageOps.solarize(image, 256 - int(level * 256))


def lightened(image, level, sign, fill):
    """The darker half raised."""
    add = min(128, int(level * 110))
    table = [min(255, value + add) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


# (image, level 0..1, sign -1 or 1, fill) -> image, in timm's order.
OPERATIONS = {
    "autocontrast": lambda image, level, sign, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign, fill: ImageOps.equalize(image),
    "invert": lambda image, level, sign, fill: ImageOps.invert(image),
    "rotate": lambda image, level, sign, fill: image.rotate(sign * 30.0 * level, BICUBIC, fillcolor=fill),
    "posterize": posterized,
    "solarize": solarized,
    "solarize_add": lightened,
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, level, sign, fill: affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0), fill),
    "shear_y": lambda image, level, sign, fill: affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0), fill),
    "translate_x": lambda image, level, sign, fill: affine(
        image, (1, 0, sign * 0.45 * level * image.size[0], 0, 1, 0), fill
    ),
    "translate_y": lambda image, level, sign, fill: affine(
        image, (1, 0, 0, 0, 1, sign * 0.45 * level * image.size[1]), fill
    ),
}


def draw(view: View, pictures: np.ndarray, *, seed: int, epoch: int, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The view's pixels (B, H, W, C) uint8, each image changed in its own way; empty where the view has none of it.

    Raises UserError for images of other than 1 or 3 channels.
    """
    if view.randaugment is None:
        return {}
    if pictures.shape[-1] not in (1, 3):
        raise UserError(f"randaugment needs images of 1 or 3 channels, not {pictures.shape[-1]}: set operations to 0")
    stream = f"randaugment/{view.name}"
    plans = [planned(view.randaugment, g) for g in per_example(seed, stream, epoch=epoch, indices=indices)]
    fill = view.randaugment.fill
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        changed = list(pool.map(lambda pair: changed_image(*pair, fill), zip(pictures, plans, strict=True)))
    return {view.name: np.stack(changed)}


def planned(r, draws: np.random.Generator) -> list[tuple[str, float, int]]:
    """(operation, level 0..1, sign) of each operation that one image gets."""
    plan = []
    for name in draws.choice(list(OPERATIONS), size=r.operations):
        happens, sign = draws.random() < r.probability, -1 if draws.random() < 0.5 else 1
        magnitude = np.clip(draws.normal(r.magnitude, r.std), 0.0, LEVELS)
        if happens:
            plan.append((str(name), float(magnitude / LEVELS), sign))
    return plan


def changed_image(pixels: np.ndarray, plan: list, fill: tuple[int, ...]) -> np.ndarray:
    """(H, W, C) uint8, 1 or 3 channels, after the operations of a plan."""
    if not plan:
        return pixels
    grey = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    colour = fill[0] if grey else tuple(np.broadcast_to(fill, 3).tolist())
    for name, level, sign in plan:
        image = OPERATIONS[name](image, level, sign, colour)
    return np.asarray(image).reshape(pixels.shape)
