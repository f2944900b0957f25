"""From config fields to views: crops, augmentation, masks; and the images of a view as networks take them."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from maskcl_jax.errors import UserError, check_choice, check_range
from maskcl_jax.ops import color as color_ops
from maskcl_jax.ops import masking, normalization
from maskcl_jax.views.base import IMAGE, Ingredient, View
from maskcl_jax.views.color import APPLIED_ON, Color
from maskcl_jax.views.crop import RandomResizedCrop
from maskcl_jax.views.patch_mask import PatchMask


def view(config: Any, *, name: str = IMAGE, ingredients: Iterable[Ingredient | None] = (), **crop: Any) -> View:
    """Returns a view cropped as `config.augment` says. Raises UserError for a wrong value.

    Args:
        config: The run's.
        name: Of the view.
        ingredients: Of the view; those that are None are left out.
        crop: Fields of `RandomResizedCrop` that differ from `config.augment`.
    """
    a = config.augment
    check_choice("augment.interpolation", a.interpolation, ("bicubic", "bilinear"))
    described = {
        "size": tuple(config.data.image_size),
        "scale": tuple(a.crop_scale),
        "ratio": tuple(a.crop_ratio),
        "interpolation": a.interpolation,
        "flip": a.flip,
    }
    return View(
        name=name,
        crop=RandomResizedCrop(**(described | crop)),
        ingredients=tuple(ingredient for ingredient in ingredients if ingredient is not None),
    )


def color(config: Any, field: str) -> Color | None:
    """Returns the color augmentation of `config.method.FIELD`; None if it changes nothing.

    Raises UserError for a value out of range.
    """
    c = getattr(config.method, field)
    applied_on = getattr(config.augment, "photometric", APPLIED_ON[0])
    check_choice("augment.photometric", applied_on, APPLIED_ON)
    values = {name: getattr(c, name) for name in Color.__dataclass_fields__ if name != "applied_on"}
    low, high = values["blur_sigma"] = tuple(values["blur_sigma"])
    for name in ("jitter_p", "grey_p", "blur_p", "solarize_p", "solarize_threshold", *color_ops.JITTER[:3]):
        check_range(f"method.{field}.{name}", values[name], 0.0, 1.0)
    check_range(f"method.{field}.hue", values["hue"], 0.0, 0.5)
    limit = color_ops.BLUR_RADIUS / 3
    if not 0 < low <= high <= limit:
        raise UserError(f"method.{field}.blur_sigma={(low, high)} is out of range: 0 < low <= high <= {limit}")
    changes = any(values[n] for n in ("jitter_p", "grey_p", "blur_p", "solarize_p"))
    return Color(**values, applied_on=applied_on) if changes else None


def patch_mask(
    config: Any, grid: tuple[int, int], *, field: str = "mask_ratio", kind: str = "random", block: int = 1
) -> PatchMask:
    """Returns the mask with the ratio `config.method.FIELD`. Raises UserError if nothing is visible or masked."""
    ratio = getattr(config.method, field)
    count = grid[0] * grid[1]
    if block < 1 or grid[0] % block or grid[1] % block:
        raise UserError(
            f"method.mask_block={block} does not divide the {grid[0]}x{grid[1]} grid of patches: use 1, or change "
            "model.patch_size or data.image_size"
        )
    visible = masking.num_visible(count // block**2, ratio) * block**2
    if not 0 < visible < count:
        raise UserError(
            f"method.{field}={ratio} leaves {visible} of {count} patches visible: some must be visible and some masked"
        )
    return PatchMask(kind=kind, num_patches=count, num_visible=visible, block=block, grid=grid)


def network_images(config: Any, batch: Mapping[str, jax.Array], view: View, *, augment_color: bool = True) -> jax.Array:
    """Returns one view of a batch as networks take it: `float_images`, normalized with the mean and std of the data."""
    images = float_images(batch, view, augment_color=augment_color)
    return normalization.standardize(images, config.data.mean, config.data.std)


def float_images(batch: Mapping[str, jax.Array], view: View, *, augment_color: bool = True) -> jax.Array:
    """Returns one view of a batch, (B, H, W, C) float32 in 0..1.

    augment_color: whether the color augmentation that is left to the device is applied.
    """
    images, augmentation = normalization.to_float(batch[view.name]), view.find(Color)
    if augmentation is None or augmentation.applied_on == "host" or not augment_color:
        return images
    return color_ops.apply(
        images,
        batch[view.key("color")],
        blur=augmentation.blur_p > 0,
        threshold=augmentation.solarize_threshold,
    )
