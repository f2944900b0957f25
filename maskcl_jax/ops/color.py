"""Color operations, as torchvision defines them for float images (`transforms.functional`).

`apply` is for the device, inside the step; `apply_each` for CPU cores, and computes only what an image needs. Both use
the same operations, which take planes, a tuple of the channels, each (B, H, W) float32 in 0..1, and one number an
image, (B,): a CPU core then works in long vectors; three interleaved channels make short ones.

Source: torchvision `transforms.functional`, checked against it in the tests.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# The parameters of an image: which of brightness, contrast, saturation, hue comes first to fourth, by how much each,
# and then: grayscale (0 or 1), the blur's sigma in pixels (0: none), solarization (0 or 1).
COLUMNS = (
    *("order_1", "order_2", "order_3", "order_4"),
    *("brightness", "contrast", "saturation", "hue"),
    *("grayscale", "blur_sigma", "solarize"),
)
IDENTITY = (0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)  # changes nothing
JITTER = COLUMNS[4:8]
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights
SOLARIZE_THRESHOLD = 128 / 256  # Pillow's; n / 256 divides uint8 levels as n itself does
BLUR_RADIUS = 6  # pixels: three sigmas of the widest blur in use, 2.0


def planes_of(images: jax.Array) -> tuple:
    """(B, H, W, C) -> its C planes (B, H, W)."""
    planes = jnp.moveaxis(images, -1, 0)
    return tuple(planes[channel] for channel in range(len(planes)))


def images_of(planes: tuple) -> jax.Array:
    """C planes (B, H, W) -> (B, H, W, C)."""
    return jnp.stack(planes, axis=-1)


def per_image(x: jax.Array) -> jax.Array:
    """(B,) -> (B, 1, 1)."""
    return x[:, None, None]


def select_planes(chosen: jax.Array, planes: tuple, others: tuple) -> tuple:
    """Of each image its `planes` where `chosen` (B,) is True, and `others` where it is False."""
    return tuple(jnp.where(per_image(chosen), *pair) for pair in zip(planes, others, strict=True))


def blend(planes: tuple, other: jax.Array | float, factor: jax.Array) -> tuple:
    """factor * plane + (1 - factor) * other of every plane, clipped to 0..1."""
    factor = per_image(factor)
    return tuple(jnp.clip(factor * plane + (1.0 - factor) * other, 0.0, 1.0) for plane in planes)


def grayscale_of(planes: tuple) -> jax.Array:
    """(B, H, W): luminance of three channels, otherwise their mean."""
    if len(planes) != 3:
        return sum(planes) / len(planes)
    return sum(weight * plane for weight, plane in zip(GREY, planes, strict=True))


def adjust_brightness(planes: tuple, factor: jax.Array) -> tuple:
    """Towards black (0) or beyond the image (above 1)."""
    return blend(planes, 0.0, factor)


def adjust_contrast(planes: tuple, factor: jax.Array) -> tuple:
    """Towards, or away from, the mean gray of the whole image."""
    # Along the columns first: a CPU core would add up a whole image sequentially.
    columns_mean = grayscale_of(planes).mean(axis=1, keepdims=True)
    return blend(planes, columns_mean.mean(axis=2, keepdims=True), factor)


def adjust_saturation(planes: tuple, factor: jax.Array) -> tuple:
    """Towards, or away from, the gray of every pixel; three channels only."""
    return blend(planes, grayscale_of(planes), factor) if len(planes) == 3 else planes


def adjust_hue(planes: tuple, turn: jax.Array) -> tuple:
    """The hue turned by -0.5..0.5 of the circle, in HSV; three channels only."""
    if len(planes) != 3:
        return planes
    r, g, b = planes
    high, low = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
    spread = high - low
    flat = spread == 0
    saturation = spread / jnp.where(flat, 1.0, high)
    red, green, blue = ((high - plane) / jnp.where(flat, 1.0, spread) for plane in planes)
    # The planes are compared with each other, not by `== high`: a compiler may compute the two sides separately,
    # rounded differently, and then no plane would be the highest.
    is_red = (r >= g) & (r >= b)
    sixth = jnp.where(is_red, blue - green, jnp.where(g >= b, 2.0 + red - blue, 4.0 + green - red))
    hue = jnp.where(flat, 0.0, sixth / 6.0) + per_image(turn)
    sixths = 6.0 * (hue - jnp.floor(hue))
    turned = []
    for start in (5.0, 3.0, 1.0):
        position = start + sixths
        position = jnp.where(position >= 6.0, position - 6.0, position)
        fraction = jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)
        turned.append(high * (1.0 - saturation * fraction))
    return tuple(turned)


def solarize(planes: tuple, applied: jax.Array, threshold: float = SOLARIZE_THRESHOLD) -> tuple:
    """Where `applied` is 1, values of `threshold` and more are turned into 1 - value."""
    return tuple(jnp.where((per_image(applied) > 0) & (plane >= threshold), 1.0 - plane, plane) for plane in planes)


def gaussian_blur(planes: tuple, sigma: jax.Array, radius: int = BLUR_RADIUS) -> tuple:
    """Gaussian of 2 * radius + 1 taps, the border reflected; sigma 0 leaves an image as it is.

    A true Gaussian, where the papers' code uses Pillow's three box blurs: our choice.
    """
    taps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    blurred = tuple(weighted_sum(weighted_sum(plane, weights, axis=1), weights, axis=2) for plane in planes)
    return select_planes(sigma > 0, blurred, planes)


def weighted_sum(plane: jax.Array, weights: jax.Array, *, axis: int) -> jax.Array:
    """A plane (B, H, W), each of its pixels the sum of those around it along an axis, by weights (B, taps)."""
    count = weights.shape[1]
    padding = [(count // 2, count // 2) if i == axis else (0, 0) for i in range(3)]
    lines = jnp.pad(plane, padding, mode="reflect")
    shifted = (jax.lax.slice_in_dim(lines, k, k + plane.shape[axis], axis=axis) for k in range(count))
    return sum((per_image(weights[:, k]) * part for k, part in enumerate(shifted)), start=jnp.zeros((), plane.dtype))


OPERATIONS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def columns(parameters: jax.Array) -> dict[str, jax.Array]:
    """{column of `COLUMNS`: (B,) float32}."""
    return dict(zip(COLUMNS, parameters.astype(jnp.float32).T, strict=True))


def apply(
    images: jax.Array, parameters: jax.Array, *, blur: bool = True, threshold: float = SOLARIZE_THRESHOLD
) -> jax.Array:
    """Images (B, H, W, C) in 0..1 -> the same, changed as `parameters` (B, P) says, the columns of `COLUMNS`.

    Args:
        images: Of one view.
        parameters: One row for each image.
        blur: False leaves the blur out of the program, for views that never have it.
        threshold: The smallest value that solarization inverts.
    """
    p, planes = columns(parameters), planes_of(images)
    for place in COLUMNS[:4]:
        changed = planes
        for number, (name, operation) in enumerate(OPERATIONS.items()):
            changed = select_planes(p[place] == number, operation(planes, p[name]), changed)
        planes = changed
    if len(planes) == 3:
        planes = select_planes(p["grayscale"] > 0, (grayscale_of(planes),) * 3, planes)
    if blur:
        planes = gaussian_blur(planes, p["blur_sigma"])
    return images_of(solarize(planes, p["solarize"], threshold))


def apply_each(
    images: jax.Array, parameters: jax.Array, *, blur: bool = True, threshold: float = SOLARIZE_THRESHOLD
) -> jax.Array:
    """uint8 (B, H, W, C) -> the same, as `apply` changes them, rounded; one after the other, with branches."""

    def change(image_and_row):
        image, row = image_and_row
        planes = tuple(plane.astype(jnp.float32) / 255.0 for plane in planes_of(image[None]))
        planes = _apply_to_one(planes, columns(row[None]), blur=blur, threshold=threshold)
        return images_of(tuple(jnp.floor(plane * 255.0 + 0.5).astype(jnp.uint8) for plane in planes))[0]

    return jax.lax.map(change, (images, parameters))


def _apply_to_one(planes: tuple, p: dict[str, jax.Array], *, blur: bool, threshold: float) -> tuple:
    amounts = jnp.stack([p[name][0] for name in OPERATIONS])
    unchanged = amounts == jnp.asarray(IDENTITY[4:8])

    def operation(name):
        return lambda planes: OPERATIONS[name](planes, p[name])

    branches = [*map(operation, OPERATIONS), lambda planes: planes]
    for place in COLUMNS[:4]:
        number = p[place][0].astype(jnp.int32)
        planes = jax.lax.switch(jnp.where(unchanged[number], len(OPERATIONS), number), branches, planes)
    if len(planes) == 3:
        planes = _if(p["grayscale"], lambda x: (grayscale_of(x),) * 3, planes)
    if blur:
        planes = _if(p["blur_sigma"], lambda x: gaussian_blur(x, p["blur_sigma"]), planes)
    return _if(p["solarize"], lambda x: solarize(x, p["solarize"], threshold), planes)


def _if(applied: jax.Array, operation: Callable[[tuple], tuple], planes: tuple) -> tuple:
    return jax.lax.cond(applied[0] > 0, operation, lambda x: x, planes)
