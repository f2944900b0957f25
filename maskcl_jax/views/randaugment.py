"""RandAugment as timm's `rand-m9-mstd0.5-inc1` has it: what MAE and CMAE fine-tune with. Pillow, on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from maskcl_jax.errors import UserError
from maskcl_jax.views.base import Batch, Entry, Ingredient, View
from maskcl_jax.views.batches import HostBatch

LEVELS = 10.0  # the largest magnitude
BICUBIC = Image.Resampling.BICUBIC


def affine(image: Image.Image, matrix: tuple[float, ...], fill: Any) -> Image.Image:
    """Pixel (x, y) of the result shows pixel matrix (x, y, 1) of the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=fill)


def enhance(kind: Any) -> Callable[..., Image.Image]:
    """Brightness and its like: a factor below or above 1, the further the larger the level."""
    return lambda image, level, sign, fill: kind(image).enhance(max(0.1, 1.0 + sign * 0.9 * level))


def posterize(image: Image.Image, level: float, sign: int, fill: Any) -> Image.Image:
    """The highest bits of each pixel: 4 at level 0, none at 1."""
    return ImageOps.posterize(image, 4 - int(level * 4))


def solarize(image: Image.Image, level: float, sign: int, fill: Any) -> Image.Image:
    """Inverted from a threshold on."""
    return ImageOps.solarize(image, 256 - int(level * 256))


def solarize_add(image: Image.Image, level: float, sign: int, fill: Any) -> Image.Image:
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
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": enhance(ImageEnhance.Color),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, level, sign, fill: affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0), fill),
    "shear_y": lambda image, level, sign, fill: affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0), fill),
    "translate_x": lambda image, level, sign, fill: affine(
        image, (1, 0, sign * 0.45 * level * image.size[0], 0, 1, 0), fill
    ),
    "translate_y": lambda image, level, sign, fill: affine(
        image, (1, 0, 0, 0, 1, sign * 0.45 * level * image.size[1]), fill
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Ingredient):
    """Random operations on the pixels of a view: timm's `rand-m{magnitude}-mstd{std}-inc1`.

    Attributes:
        operations: how many an image gets, each of them with `probability`.
        magnitude: mean of a normal distribution of standard deviation `std`, clipped to 0..10.
        fill: the color, one number a channel, of what rotations and shears leave empty.

    Source: rwightman/pytorch-image-models `timm/data/auto_augment.py`.

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> augment = mc.RandAugment(operations=2, probability=1.0)
        >>> view = mc.View(crop=mc.CenterCrop(size=(32, 32)), ingredients=(augment,))
        >>> batch = HostBatch((view,), seed=0, epoch=0, indices=np.arange(8))
        >>> batch.images["image"] = before = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        >>> augment.sample(view, batch), bool((batch.images["image"] != before).any())
        ({}, True)
    """

    operations: int = 2
    magnitude: float = 9.0
    std: float = 0.5
    probability: float = 0.5
    fill: tuple[int, ...] = (0,)

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """None: it changes pixels only.

        Args:
            view: the view that has the ingredient.
            channels: of the images.

        Returns:
            {}.
        """
        return {}

    def host_only(self) -> str:
        """Pillow's operations."""
        return "RandAugment runs on the host: set data.on_device=False"

    def needs_processes(self) -> bool:
        """Pillow's operations, chosen for each image."""
        return True

    def sample(self, view: View, batch: Batch) -> dict[str, Any]:
        """Changes each image of the view in its own way.

        Args:
            view: the view that has the ingredient.
            batch: the pixels of the view, which are replaced, and the source of random numbers.

        Returns:
            {}.

        Raises:
            UserError: The images have other than 1 or 3 channels.
        """
        images = batch.images[view.name]
        if images.shape[-1] not in (1, 3):
            raise UserError(f"randaugment needs images of 1 or 3 channels, not {images.shape[-1]}: set operations to 0")
        assert isinstance(batch, HostBatch)  # see `host_only`
        plans = [self.plan(generator) for generator in batch.generators(f"randaugment/{view.name}")]
        changed = [augment(image, plan, self.fill) for image, plan in zip(images, plans, strict=True)]
        batch.images[view.name] = np.stack(changed)
        return {}

    def plan(self, generator: np.random.Generator) -> list[tuple[str, float, int]]:
        """(operation, level 0..1, sign) of each operation that one image gets."""
        plan = []
        for name in generator.choice(list(OPERATIONS), size=self.operations):
            happens, sign = generator.random() < self.probability, -1 if generator.random() < 0.5 else 1
            magnitude = np.clip(generator.normal(self.magnitude, self.std), 0.0, LEVELS)
            if happens:
                plan.append((str(name), float(magnitude / LEVELS), sign))
        return plan


def augment(pixels: np.ndarray, plan: list, fill: tuple[int, ...]) -> np.ndarray:
    """(H, W, C) uint8, 1 or 3 channels, after the operations of a plan."""
    if not plan:
        return pixels
    gray = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if gray else pixels)
    color = fill[0] if gray else tuple(np.broadcast_to(fill, 3).tolist())
    for name, level, sign in plan:
        image = OPERATIONS[name](image, level, sign, color)
    return np.asarray(image).reshape(pixels.shape)
