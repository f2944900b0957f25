"""Small data sets in device memory: views are cropped, flipped and masked inside the jitted step, from its own key.

The host passes only the indices of the images. Crops and ingredients are those of the host's pipeline, by the same
code, with other random numbers: those of a step, not of an epoch and an example.
"""

from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.data.decode import to_channels
from maskcl_jax.data.order import TrainOrder
from maskcl_jax.data.sources import Arrays, Source
from maskcl_jax.errors import UserError
from maskcl_jax.ops.resize import resized_crops
from maskcl_jax.views.base import View
from maskcl_jax.views.batches import DeviceBatch

IMAGES, INDEX = "images", "index"  # the keys of the batch that the step is given


def place(
    source: Source, views: Sequence[View], *, channels: int, devices: int, sharding: jax.sharding.Sharding
) -> jax.Array:
    """The training images in device memory.

    Args:
        source: of the images.
        views: of the method.
        channels: of the views.
        devices: over which the images are split.
        sharding: splits the first dimension over them.

    Returns:
        (N, H, W, channels) uint8; N is rounded up to a multiple of `devices`.

    Raises:
        UserError: the source has no such array, or only the host can make a view.
    """
    for view in views:
        for ingredient in view.ingredients:
            if reason := ingredient.host_only():
                raise UserError(reason)
    split = source.split("train")
    if not isinstance(split, Arrays):
        raise UserError(
            f"data.on_device=True needs decoded images of one size, which this source has not ({source.description}): "
            "write them into one file with python -m maskcl_jax.data.to_array and take data.source=npz"
        )
    images = to_channels(split.images, channels)
    padding = -len(images) % devices
    images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), np.uint8)]) if padding else images
    return jax.make_array_from_callback(images.shape, sharding, lambda part: images[part])


def indices(count: int, **options: Any) -> Generator[dict[str, np.ndarray], None, None]:
    """This process's part of batch `start_step`, `start_step` + 1, ...: the images that the host's pipeline takes.

    Args:
        count: of the training images.
        **options: of `TrainOrder`.
    """
    order = TrainOrder(count, **options)
    for step in range(len(order)):
        yield {INDEX: order[step].indices.astype(np.int32)}


def batch_of(views: Sequence[View], images: jax.Array, index: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """The batch that a step makes of images (N, H, W, C) at index (B,), by its key; without `label`."""
    picked = images[index]
    batch = DeviceBatch(views, key=key, size=len(index))
    for view in views:
        crop = view.crop
        rows = crop.sample(view, batch, *images.shape[1:3])
        shift = jnp.zeros((len(index), 2), jnp.int32)
        if crop.shift:
            batch.arrays[view.key("shift")] = shift = crop.sample_shift(view, batch)
        options: dict[str, Any] = {"size": crop.size, "master": crop.master, "interpolation": crop.interpolation}
        batch.crops[view.name] = rows
        batch.images[view.name] = resized_crops(picked, rows, shift, **options)
    batch.add_ingredients()
    return {INDEX: index} | batch.images | batch.arrays


def key_of(rng: jax.Array) -> jax.Array:
    """The key of a step's views, from the step's own."""
    return jax.random.fold_in(rng, 6_001)  # far from the numbers by which a method divides the same key
