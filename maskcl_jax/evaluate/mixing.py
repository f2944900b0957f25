"""What fine-tuning does to a batch on the device: random erasing, mixup or cutmix, smoothed targets."""

import jax
import jax.numpy as jnp

ATTEMPTS = 10  # timm `RandomErasing`
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = 0.3  # height / width from 0.3 to 1 / 0.3


def targets_of(labels, num_classes: int, smoothing: float):
    """(B, C) float32: 1 - smoothing on the label, and smoothing spread over all classes."""
    return (1.0 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes


def erase(rng, images, probability: float):
    """Each normalised image (B, H, W, C), with `probability`, has one rectangle replaced by normal noise.

    Area, ratio and place as timm's `RandomErasing(mode="pixel")` draws them.
    """
    b, height, width, _ = images.shape
    keys = jax.random.split(rng, 5)
    area = height * width * jax.random.uniform(keys[0], (b, ATTEMPTS), minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    bound = jnp.log(ERASED_RATIO)
    ratio = jnp.exp(jax.random.uniform(keys[1], (b, ATTEMPTS), minval=bound, maxval=-bound))
    h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = jnp.take_along_axis(h, first, axis=1), jnp.take_along_axis(w, first, axis=1)
    place = jax.random.uniform(keys[2], (2, b, 1))
    top, left = jnp.floor(place[0] * (height - h + 1)), jnp.floor(place[1] * (width - w + 1))
    happens = fits.any(axis=1) & (jax.random.uniform(keys[3], (b,)) < probability)
    inside = rectangle(top, left, top + h, left + w, height, width) & happens[:, None, None]
    return jnp.where(inside[..., None], jax.random.normal(keys[4], images.shape), images)


def rectangle(top, left, bottom, right, height: int, width: int):
    """(B, H, W) bool, True inside; bounds (B, 1), the lower and right one excluded."""
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return down[:, :, None] & across[:, None, :]


def mix(rng, images, targets, *, mixup: float, cutmix: float):
    """(images, targets) of a batch blended with itself in reverse order: mixup, or cutmix, one for the whole batch.

    mixup, cutmix: parameters of their beta distributions, 0 for never; with both, each has half the batches. Source:
    timm `Mixup(mode="batch", switch_prob=0.5)`.
    """
    if not mixup and not cutmix:
        return images, targets
    to_choice, to_mixup, to_cutmix, to_place = jax.random.split(rng, 4)
    share = jax.random.bernoulli(to_choice) if mixup and cutmix else jnp.asarray(bool(cutmix))
    kept = jnp.where(
        share,
        jax.random.beta(to_cutmix, cutmix or 1.0, cutmix or 1.0),
        jax.random.beta(to_mixup, mixup or 1.0, mixup or 1.0),
    )
    inside, cut = cut_box(to_place, kept, *images.shape[1:3])
    other = images[::-1]
    blended = jnp.where(share, jnp.where(inside[..., None], other, images), kept * images + (1.0 - kept) * other)
    kept = jnp.where(share, 1.0 - cut, kept)
    return blended, kept * targets + (1.0 - kept) * targets[::-1]


def cut_box(rng, kept, height: int, width: int):
    """((1, H, W) bool of a box of about 1 - kept of the area, centred anywhere and clipped; the share it covers)."""
    scale = jnp.sqrt(1.0 - kept)
    h, w = jnp.floor(height * scale), jnp.floor(width * scale)
    place = jax.random.uniform(rng, (2, 1, 1))
    y, x = jnp.floor(place[0] * height), jnp.floor(place[1] * width)
    top, bottom = jnp.clip(y - h // 2, 0, height), jnp.clip(y + h // 2, 0, height)
    left, right = jnp.clip(x - w // 2, 0, width), jnp.clip(x + w // 2, 0, width)
    inside = rectangle(top, left, bottom, right, height, width)
    return inside, inside.mean()
