"""Augmented training batches with labels, and the sizes that follow from a split."""

import jax

from maskcl_jax.data import pipeline, subsets
from maskcl_jax.data.sources import Source, open_source
from maskcl_jax.data.tfds_stream import Records
from maskcl_jax.errors import UserError
from maskcl_jax.training import sharding
from maskcl_jax.views import RandAugment, View


def fitted_batch(asked: int, count: int, mesh) -> int:
    """The batch size asked for, or the largest that `count` images fill on these devices (our choice, for few labels).

    Raises UserError where not even one image falls to each device.
    """
    devices = mesh.shape[sharding.DATA]
    size = min(asked, count // devices * devices)
    if size == 0:
        raise UserError(f"labels leave {count} training images for {devices} devices: ask for more labels")
    return size


def view_of(settings) -> View:
    """The one view of an augmented training image."""
    a, r = settings.augment, settings.get("randaugment", None)
    fill = tuple(min(255, round(255 * mean)) for mean in settings.data.mean)
    ops = RandAugment(**dict(r), fill=fill) if r and r.operations else None
    return View(
        size=tuple(settings.data.image_size),
        crop_scale=tuple(a.crop_scale),
        crop_ratio=tuple(a.crop_ratio),
        interpolation=a.interpolation,
        flip=a.flip,
        randaugment=ops,
    )


def train_batches(source: Source, settings, *, batch_size: int, start: int):
    """Batches of image and label, from step `start` on."""
    made = pipeline.train_batches(
        source,
        [view_of(settings)],
        data_config=settings.data,
        batch_size=batch_size,
        seed=settings.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return Labelled(made)


class Labelled:
    """Batches with what a classifier's step needs alone."""

    def __init__(self, batches):
        self.batches = batches

    def __next__(self):
        batch = next(self.batches)
        return {"image": batch["image"], "label": batch["label"]}

    def close(self):
        """Stops the thread that makes them."""
        self.batches.close()


def total_steps(settings, count: int, batch_size: int) -> tuple[int, int]:
    """(steps of the run, steps of an epoch). Raises UserError where there is none."""
    per_epoch = count // batch_size
    total = settings.total_steps or round(settings.epochs * per_epoch)
    if total < 1:
        raise UserError(f"epochs={settings.epochs} gives no step: set epochs or total_steps to a positive number")
    return total, per_epoch


def with_holdout(source: Source, settings) -> Source:
    """The source, a share of whose training images is held out as its test split: where rates are chosen."""
    data = source.split("train")
    if isinstance(data, Records):
        return streamed_holdout(source, settings, len(data))
    kept, held = subsets.held_out(len(data), settings.holdout, seed=settings.seed)
    return subsets.Part(source, {"train": ("train", kept), "test": ("train", held)})


def streamed_holdout(source: Source, settings, count: int) -> Source:
    """The same of a tfds split too large for memory: its first images, which TFDS has shuffled."""
    held = max(1, round(settings.holdout * count))
    split = settings.data.train_split
    if "[" in split or "+" in split:
        raise UserError(f"holdout={settings.holdout} needs a whole split: data.train_split={split!r}; or set holdout=0")
    data = settings.data.copy_and_resolve_references()
    data.train_split, data.test_split = f"{split}[{held}:]", f"{split}[:{held}]"
    return open_source(data)
