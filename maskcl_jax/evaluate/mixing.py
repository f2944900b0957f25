"""What fine-tuning does to a batch on the device: random erasing, mixup or CutMix, label smoothing."""

import jax
import jax.numpy as jnp

ATTEMPTS = 10  # timm `RandomErasing`
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = 0.3  # height / width from 0.3 to 1 / 0.3


def smooth_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """(B,) labels -> (B, C) float32: 1 - smoothing on the label, and smoothing spread over all classes."""
    return (1.0 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes


def erase(rng: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing: replaces one rectangle of an image by normal noise.

    Args:
        rng: A key.
        images: (B, H, W, C), normalized.
        probability: That an image is changed.

    Returns:
        The images.

    Source: timm `RandomErasing(mode="pixel")`, for area, ratio and position.
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
    corner = jax.random.uniform(keys[2], (2, b, 1))
    top, left = jnp.floor(corner[0] * (height - h + 1)), jnp.floor(corner[1] * (width - w + 1))
    erased = fits.any(axis=1) & (jax.random.uniform(keys[3], (b,)) < probability)
    inside = rectangle(top, left, top + h, left + w, height, width) & erased[:, None, None]
    return jnp.where(inside[..., None], jax.random.normal(keys[4], images.shape), images)


def rectangle(
    top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array, height: int, width: int
) -> jax.Array:
    """(B, height, width) bool, True inside; bounds (B, 1), bottom and right excluded."""
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return down[:, :, None] & across[:, None, :]


def mix(
    rng: jax.Array, images: jax.Array, targets: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Blends a batch with itself in reverse order: mixup or CutMix, one for the whole batch.

    Args:
        rng: A key.
        images: (B, H, W, C).
        targets: (B, C) probabilities of the classes.
        mixup: Parameter of the beta distribution of mixup, 0 for never.
        cutmix: Likewise of CutMix; with both, each has half the batches.

    Returns:
        (images, targets), blended alike.

    Source: timm `Mixup(mode="batch", switch_prob=0.5)`.
    """
    if not mixup and not cutmix:
        return images, targets
    choice_key, mixup_key, cutmix_key, box_key = jax.random.split(rng, 4)
    use_cutmix = jax.random.bernoulli(choice_key) if mixup and cutmix else jnp.asarray(bool(cutmix))
    kept = jnp.where(
        use_cutmix,
        jax.random.beta(cutmix_key, cutmix or 1.0, cutmix or 1.0),
        jax.random.beta(mixup_key, mixup or 1.0, mixup or 1.0),
    )
    inside, area = cutmix_box(box_key, kept, *images.shape[1:3])
    other = images[::-1]
    blended = jnp.where(use_cutmix, jnp.where(inside[..., None], other, images), kept * images + (1.0 - kept) * other)
    kept = jnp.where(use_cutmix, 1.0 - area, kept)
    return blended, kept * targets + (1.0 - kept) * targets[::-1]


def cutmix_box(rng: jax.Array, kept: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """((1, height, width) bool of a box of about 1 - kept of the area, its center anywhere; the fraction it covers)."""
    scale = jnp.sqrt(1.0 - kept)
    h, w = jnp.floor(height * scale), jnp.floor(width * scale)
    center = jax.random.uniform(rng, (2, 1, 1))
    y, x = jnp.floor(center[0] * height), jnp.floor(center[1] * width)
    top, bottom = jnp.clip(y - h // 2, 0, height), jnp.clip(y + h // 2, 0, height)
    left, right = jnp.clip(x - w // 2, 0, width), jnp.clip(x + w // 2, 0, width)
    inside = rectangle(top, left, bottom, right, height, width)
    return inside, inside.mean()
