"""Colour operations, as torchvision defines them for float images (`transforms.functional`).

`apply` is for the device, inside the step; `apply_each` for the host's processors, which do only what an image asks
for. Both are made of the same operations. These take images (B, H, W, C) float32 in 0..1 and one number an image, (B,).
Checked against torchvision in the tests.
"""

import jax
import jax.numpy as jnp

from maskcl_jax.views import PHOTOMETRIC, PHOTOMETRIC_IDENTITY

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
    # Not a product with a 3 x 1 matrix, which no compiler fuses with what comes before and after.
    return sum(weight * images[..., i : i + 1] for i, weight in enumerate(GREY))


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
    r, g, b = planes = [images[..., channel] for channel in range(3)]
    red, green, blue = ((high - plane) / jnp.where(flat, 1.0, spread) for plane in planes)
    # Which is the highest is asked of the planes, not by `== high`: a compiler may compute the images for one and for
    # the other apart, rounded differently, and then no plane would be the highest.
    is_red = (r >= g) & (r >= b)
    sixth = jnp.where(is_red, blue - green, jnp.where(g >= b, 2.0 + red - blue, 4.0 + green - red))
    hue = jnp.where(flat, 0.0, sixth / 6.0) + turn[:, None, None]
    sixths = 6.0 * (hue - jnp.floor(hue))
    turned = []
    for start in (5.0, 3.0, 1.0):
        position = start + sixths
        position = jnp.where(position >= 6.0, position - 6.0, position)
        share = jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)
        turned.append(high * (1.0 - saturation * share))
    return jnp.stack(turned, axis=-1)


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
    count, height, width, channels = images.shape
    blurred = images
    for axis, step in ((1, 1), (2, channels)):
        padding = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        # Rows without their channels apart: a step across is `channels` numbers, and processors add in long vectors.
        lines = jnp.pad(blurred, padding, mode="reflect").reshape(
            count, -1, (width + 2 * radius * (axis - 1)) * channels
        )
        ends = {1: height, 2: width * channels}[axis]
        shifted = (jax.lax.slice_in_dim(lines, k * step, k * step + ends, axis=axis) for k in range(2 * radius + 1))
        blurred = sum(weights[:, k, None, None] * part for k, part in enumerate(shifted)).reshape(images.shape)
    return jnp.where(per_image(sigma) > 0, blurred, images)


OPERATIONS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def columns(parameters) -> dict:
    """{column of `views.PHOTOMETRIC`: (B,) float32}."""
    return dict(zip(PHOTOMETRIC, parameters.astype(jnp.float32).T, strict=True))


def apply(images, parameters, *, blur: bool = True):
    """Images in 0..1 -> the same, changed as `parameters` (B, P) says, the columns of `views.PHOTOMETRIC`.

    blur: False leaves the blur out of the program, for views that never have it.
    """
    p = columns(parameters)
    for place in PHOTOMETRIC[:4]:
        changed = images
        for number, (name, operation) in enumerate(OPERATIONS.items()):
            changed = jnp.where(per_image(p[place]) == number, operation(images, p[name]), changed)
        images = changed
    if images.shape[-1] == 3:
        images = jnp.where(per_image(p["grey"]) > 0, grey_of(images), images)
    if blur:
        images = gaussian_blur(images, p["blur_sigma"])
    return solarize(images, p["solarize"])


def apply_each(images, parameters, *, blur: bool = True):
    """uint8 (B, H, W, C) -> the same, as `apply` changes them, rounded; one after the other, by branches."""

    def change(image_and_row):
        image, row = image_and_row
        changed = _apply_to_one(image[None].astype(jnp.float32) / 255.0, columns(row[None]), blur=blur)
        return jnp.floor(changed[0] * 255.0 + 0.5).astype(jnp.uint8)

    return jax.lax.map(change, (images, parameters))


def _apply_to_one(image, p, *, blur: bool):
    amounts = jnp.stack([p[name][0] for name in OPERATIONS])
    unchanged = amounts == jnp.asarray(PHOTOMETRIC_IDENTITY[4:8])

    def operation(name):
        return lambda image: OPERATIONS[name](image, p[name])

    branches = [*map(operation, OPERATIONS), lambda image: image]
    for place in PHOTOMETRIC[:4]:
        number = p[place][0].astype(jnp.int32)
        image = jax.lax.switch(jnp.where(unchanged[number], len(OPERATIONS), number), branches, image)
    if image.shape[-1] == 3:
        image = _if(p["grey"], lambda x: jnp.broadcast_to(grey_of(x), x.shape), image)
    if blur:
        image = _if(p["blur_sigma"], lambda x: gaussian_blur(x, p["blur_sigma"]), image)
    return _if(p["solarize"], lambda x: solarize(x, p["solarize"]), image)


def _if(applied, operation, image):
    return jax.lax.cond(applied[0] > 0, operation, lambda x: x, image)
