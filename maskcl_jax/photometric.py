"""Colour operations on the device, as torchvision defines them for float images (`transforms.functional`).

All take images (B, H, W, C) float32 in 0..1 and one number an image, (B,). Checked against torchvision in the tests.
"""

import jax
import jax.numpy as jnp

from maskcl_jax.views import PHOTOMETRIC

GREY = (0.2989, 0.587, 0.114)  # torchvision's weights
BLUR_RADIUS = 6  # pixels: three sigmas of the widest blur in use, 2.0


def per_image(x):
    """(B,) -> (B, 1, 1, 1)."""
    return x[:, None, None, None]


def blend(images, others, factor):
    """factor * images + (1 - factor) * others, clipped to 0..1."""
    factor = per_image(factor)
    return jnp.clip(factor * images + (1.0 - factor) * others, 0.0, 1.0)


def grey_of(images):
    """(B, H, W, 1): luminance of three channels, otherwise their mean."""
    if images.shape[-1] != 3:
        return images.mean(axis=-1, keepdims=True)
    return images @ jnp.asarray(GREY, images.dtype)[:, None]


def adjust_brightness(images, factor):
    """Towards black (0) or beyond the image (above 1)."""
    return blend(images, 0.0, factor)


def adjust_contrast(images, factor):
    """Towards, or away from, the mean grey of the whole image."""
    return blend(images, grey_of(images).mean(axis=(1, 2, 3), keepdims=True), factor)


def adjust_saturation(images, factor):
    """Towards, or away from, the grey of every pixel; three channels only."""
    return blend(images, grey_of(images), factor) if images.shape[-1] == 3 else images


def adjust_hue(images, turn):
    """The hue turned by -0.5..0.5 of the circle, in HSV; three channels only."""
    if images.shape[-1] != 3:
        return images
    high, low = images.max(axis=-1), images.min(axis=-1)
    spread = high - low
    flat = spread == 0
    saturation = spread / jnp.where(flat, 1.0, high)
    red, green, blue = jnp.moveaxis((high[..., None] - images) / jnp.where(flat, 1.0, spread)[..., None], -1, 0)
    r, g, _ = jnp.moveaxis(images, -1, 0)
    sixth = jnp.where(high == r, blue - green, jnp.where(high == g, 2.0 + red - blue, 4.0 + green - red))
    hue = jnp.where(flat, 0.0, sixth / 6.0) + turn[:, None, None]
    position = (jnp.asarray([5.0, 3.0, 1.0]) + 6.0 * (hue % 1.0)[..., None]) % 6.0
    share = jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)
    return high[..., None] * (1.0 - saturation[..., None] * share)


def solarize(images, applied):
    """Where `applied` is 1, values of half and more are turned into 1 - value."""
    return jnp.where((per_image(applied) > 0) & (images >= 0.5), 1.0 - images, images)


def gaussian_blur(images, sigma, radius: int = BLUR_RADIUS):
    """Gaussian of 2 * radius + 1 taps, the border reflected; sigma 0 leaves an image as it is.

    A true Gaussian, where the papers' code calls Pillow's three box blurs: our choice.
    """
    taps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    blurred = images
    for axis in (1, 2):
        length = images.shape[axis]
        padding = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(blurred, padding, mode="reflect")
        shifted = (jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(2 * radius + 1))
        blurred = sum(per_image(weights[:, k]) * part for k, part in enumerate(shifted))
    return jnp.where(per_image(sigma) > 0, blurred, images)


def apply(images, parameters, *, blur: bool = True):
    """Images in 0..1 -> the same, changed as `parameters` (B, P) says, the columns of `views.PHOTOMETRIC`.

    blur: False leaves the blur out of the program, for views that never have it.
    """
    p = dict(zip(PHOTOMETRIC, parameters.astype(jnp.float32).T, strict=True))
    operations = (
        (adjust_brightness, p["brightness"]),
        (adjust_contrast, p["contrast"]),
        (adjust_saturation, p["saturation"]),
        (adjust_hue, p["hue"]),
    )
    for place in ("order_1", "order_2", "order_3", "order_4"):
        changed = images
        for number, (operation, amount) in enumerate(operations):
            changed = jnp.where(per_image(p[place]) == number, operation(images, amount), changed)
        images = changed
    if images.shape[-1] == 3:
        images = jnp.where(per_image(p["grey"]) > 0, grey_of(images), images)
    if blur:
        images = gaussian_blur(images, p["blur_sigma"])
    return solarize(images, p["solarize"])
