"""Views, batches and data configs for tests."""

import functools

import jax
import ml_collections
import numpy as np

from maskcl_jax.views.base import View
from maskcl_jax.views.batches import DeviceBatch, HostBatch
from maskcl_jax.views.crop import RandomResizedCrop


def view_of(size, *ingredients, name="image", **crop):
    """A randomly cropped view."""
    return View(name=name, crop=RandomResizedCrop(size=size, **crop), ingredients=ingredients)


def host_batch(views, indices, *, seed=0, epoch=0, image=(480, 640)):
    """A batch of examples, the crops of all views drawn for images of one size."""
    batch = HostBatch(views, seed=seed, epoch=epoch, indices=np.asarray(indices))
    for view in views:
        batch.crops[view.name] = view.crop.sample(view, batch, *np.full((len(indices), 2), image).T)
    return batch


def sampled(view, indices, *, images=None, **options):
    """The arrays of the ingredients of one view."""
    batch = host_batch([view], indices, **options)
    batch.images[view.name] = images
    batch.add_ingredients()
    return batch.arrays


def data_config(**fields):
    fixed = {"source": "", "name": "", "data_dir": "", "path": "", "test_path": "", "channels": 3}
    fixed |= {"list": "", "test_list": "", "exif": False, "workers": 0}
    splits = {"train_split": "train", "test_split": "test", "eval_resize": 1.0, "cache_mb": 2048, "threads": 0}
    sizes = {"image_size": (32, 32), "num_examples": 64, "num_classes": 4}
    return ml_collections.ConfigDict(fixed | splits | sizes | fields)


def assert_same(left, right):
    """Two lists of batches are equal, bit for bit."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def batch_of(method, b=8, seed=0):
    """A batch as the method's views describe it, of noise, cropped from images of 64 x 64 pixels."""
    rng, channels = np.random.default_rng(seed), method.config.data.channels
    batch = host_batch(method.views, range(b), seed=seed, image=(64, 64))
    for view in method.views:
        batch.images[view.name] = rng.integers(0, 256, (b, *view.crop.size, channels), dtype=np.uint8)
        if view.crop.shift:
            batch.arrays[view.key("shift")] = view.crop.sample_shift(view, batch)
    batch.add_ingredients()
    return batch.images | batch.arrays


def host_and_device(views, count, crops=None):
    """The arrays that ingredients sample on the host and on the device from the same uniform numbers, as numpy."""
    numbers = {}

    def uniform(batch, stream, shape=(), dtype=np.float32):
        name = (stream, shape)
        numbers.setdefault(name, np.random.default_rng(len(numbers)).random((count, *shape), np.float32))
        return batch.xp.asarray(numbers[name])

    host = HostBatch(views, seed=0, epoch=0, indices=np.arange(count))
    device = DeviceBatch(views, key=jax.random.key(0), size=count)
    for batch in (host, device):
        batch.uniform = functools.partial(uniform, batch)
        batch.crops = {name: batch.xp.asarray(rows) for name, rows in (crops or {}).items()}
        for view in views:
            batch.images[view.name] = batch.xp.zeros((count, *view.crop.size, 3), np.uint8)
            batch.crops.setdefault(view.name, None)
        batch.add_ingredients()
    return host.arrays, jax.tree.map(np.asarray, device.arrays)
