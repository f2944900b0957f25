"""Small data sets in device memory: views are cut, flipped and masked inside the jitted step, from its own key.

The host hands over nothing but which images make the batch. What is made of them is what the host's pipeline makes, by
the same functions (`crops`, `masks`, `photometric`, `boxes`, `cells`) of other random numbers: those of a step, not of
an epoch and an example. Resizing is Pillow's filter, a matrix a direction, rounded after each as Pillow's.
"""

import hashlib
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.data import boxes, cells, crops, masks, order, photometric, saliency
from maskcl_jax.data.pixels import check_interpolation, to_channels
from maskcl_jax.data.sources import Arrays, Source
from maskcl_jax.errors import UserError
from maskcl_jax.training import sharding
from maskcl_jax.views import View

IMAGES, INDEX = "images", "index"  # the keys of the batch that the step is given
SALIENCY = ("uniform", "center")  # providers that look at no image
REACH = {"bicubic": 2.0, "bilinear": 1.0}  # half-widths of the filters


def place(source: Source, views: list[View], *, channels: int, mesh) -> jax.Array:
    """The training images (N, H, W, channels) uint8, split over the devices; N is rounded up to a multiple of them.

    Raises UserError for a source that has no such array, and for views that only the host can make.
    """
    check(views)
    split = source.split("train")
    if not isinstance(split, Arrays):
        raise UserError(
            f"data.on_device=True needs decoded images of one size, which this source has not ({source.description}): "
            "write them into one file with python -m maskcl_jax.data.to_array and take data.source=npz"
        )
    images = to_channels(split.images, channels)
    padding = -len(images) % mesh.size
    images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), np.uint8)]) if padding else images
    return jax.make_array_from_callback(images.shape, sharding.batch_sharding(mesh), lambda where: images[where])


def check(views: list[View]) -> None:
    """Raises UserError for views that only the host can make."""
    for view in views:
        check_interpolation(view.interpolation)
        if view.cells and view.cells.provider not in SALIENCY:
            raise UserError(
                f"method.provider={view.cells.provider!r} is made on the host: with data.on_device=True use "
                f"{' or '.join(SALIENCY)}, or set data.on_device=False"
            )
        if view.on_host:
            raise UserError(
                "augment.photometric='host' does not go with data.on_device=True, which makes views on the device: set "
                "augment.photometric='device'"
            )
        if view.randaugment:
            raise UserError("RandAugment is made on the host: set data.on_device=False")


def indices(
    count: int, *, batch_size: int, seed: int, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of batches start_step, start_step + 1, ...: the images that the host's pipeline takes."""
    part = {"process_index": process_index, "process_count": process_count}
    for step in itertools.count(start_step):
        slots = order.train_slots(step, num_examples=count, batch_size=batch_size, seed=seed, **part)
        yield {INDEX: slots.indices.astype(np.int32)}


def batch_of(views: list[View], images, index, key) -> dict:
    """The batch of `views` (`maskcl_jax.views`) that a step makes of images (N, H, W, C) at index (B,), by its key.

    Without `label`, which no loss sees.
    """
    picked = images[index]
    noise = [uniform(key, f"crop/{view.crop or view.name}", (len(index), crops.ATTEMPTS, 4)) for view in views]
    batch, shown, recorded = {INDEX: index}, {}, crops.recorded(views)
    for view, box in zip(views, crops.boxes(views, noise, *images.shape[1:3], jnp), strict=True):
        flip = uniform(key, f"flip/{view.crop or view.name}", (len(index),)) < 0.5 * view.flip
        shift = jnp.floor(uniform(key, f"shift/{view.name}", (len(index), 2)) * (view.shift + 1)).astype(jnp.int32)
        batch[view.name] = cut(picked, box, flip, shift, view)
        batch |= _of_view(view, batch[view.name], key)
        if view.shift:
            batch[view.key("shift")] = shift
        if view.name in recorded:
            shown[view.name] = jnp.concatenate([box, flip[:, None].astype(jnp.int32)], axis=1)
    by_name = {view.name: view for view in views}
    for view in views:
        if view.boxes is not None:
            numbers = uniform(key, f"boxes/{view.name}", (len(index), view.boxes.count, 4))
            batch |= boxes.of_noise(by_name[view.boxes.shared_with], view, shown, numbers, jnp)
    return batch


def _of_view(view: View, images, key) -> dict:
    """What else a batch holds of one view: patch mask, colours, cell masks."""
    batch, count = {}, len(images)
    if view.mask is not None:
        numbers = uniform(key, f"mask/{view.name}", (count, masks.draws(view.mask)))
        batch |= masks.of_noise(view, numbers, jnp)
    if view.photometric is not None:
        numbers = uniform(key, f"photometric/{view.name}", (count, photometric.DRAWS))
        batch[view.key("photometric")] = photometric.of_noise(view.photometric, numbers, jnp)
    if (m := view.cells) is not None:
        activation = jnp.asarray(saliency.activation(images, m.grid, m.provider))
        batch[view.key("activation")] = activation
        for rule in m.rules:
            numbers = uniform(key, f"cells/{rule.name}", (count, cells.draws(rule, m.grid)))
            batch |= cells.of_noise(rule, activation, m.spread, view.size, numbers, jnp)
    return batch


def key_of(rng):
    """The key of a step's views, from the step's own."""
    return jax.random.fold_in(rng, 6_001)  # far from the numbers by which a method divides the same key


def uniform(key, stream: str, shape: tuple[int, ...]):
    """Numbers in [0, 1) for one purpose: different streams are independent."""
    number = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=4).digest(), "little")
    return jax.random.uniform(jax.random.fold_in(key, number), shape)


def cut(images, box, flip, shift, view: View):
    """The view of every image: its box resized, perhaps mirrored, and of a master the window at `shift`; uint8.

    images: (B, H, W, C) uint8. box: (B, 4) int32, top, left, height, width. flip: (B,) bool. shift: (B, 2).
    """
    full = view.master or view.size
    ways = []
    for axis, mirrored in ((0, jnp.zeros_like(flip)), (1, flip)):
        place = shift[:, axis, None] + jnp.arange(view.size[axis])
        place = jnp.where(mirrored[:, None], full[axis] - 1 - place, place)
        start, length = box[:, axis], box[:, axis + 2]
        ways.append(weights(start, length, place, full[axis], images.shape[axis + 1], view.interpolation))
    # Exact products: an accelerator's default would round pixels to eight bits of mantissa before it adds them.
    options = {"precision": jax.lax.Precision.HIGHEST}
    across = whole_levels(jnp.einsum("bpw,bhwc->bhpc", ways[1], images.astype(jnp.float32), **options))
    return whole_levels(jnp.einsum("boh,bhpc->bopc", ways[0], across, **options)).astype(jnp.uint8)


def whole_levels(pixels):
    """0..255 without fractions: what a cubic filter overshoots is lost, after each of Pillow's two passes."""
    return jnp.clip(jnp.floor(pixels + 0.5), 0, 255)


def weights(start, length, place, full: int, source: int, interpolation: str):
    """(B, n, source): what pixels of a line add to the pixels `place` (B, n) of it, cut and resized to `full`.

    start, length: (B,) of the cut. The antialiased filters of Pillow: the cubic of a = -0.5, or the triangle.
    """
    scale = length[:, None, None] / full
    wide = jnp.maximum(scale, 1.0)
    centre = start[:, None, None] + (place[:, :, None] + 0.5) * scale
    pixel = jnp.arange(source)
    distance = jnp.abs(pixel + 0.5 - centre) / wide
    if interpolation == "bicubic":
        near = (1.5 * distance - 2.5) * distance**2 + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        value = jnp.where(distance < 1.0, near, far)
    else:
        value = 1.0 - distance
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    value = jnp.where(inside & (distance < REACH[interpolation]), value, 0.0)
    return value / value.sum(axis=-1, keepdims=True)
