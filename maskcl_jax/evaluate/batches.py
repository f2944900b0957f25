"""Augmented training batches with labels, and how many there are."""

from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import Source
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import checks, subsets
from maskcl_jax.training import optimizer, sharding
from maskcl_jax.views.base import View
from maskcl_jax.views.crop import RandomResizedCrop
from maskcl_jax.views.randaugment import RandAugment


class Budget(NamedTuple):
    """How long a classifier is trained.

    Attributes:
        n_train: Training images.
        batch_size: Of all devices together.
        total_steps: Of the run.
        steps_per_epoch: Whole batches in the training images.
    """

    n_train: int
    batch_size: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epochs(self) -> float:
        """Passes over the training images."""
        return self.total_steps / self.steps_per_epoch

    def optimizer(self, settings: ml_collections.ConfigDict) -> optax.GradientTransformation:
        """The optimizer of the settings, its schedule fitted to this budget."""
        config = settings.copy_and_resolve_references()
        config.batch_size = self.batch_size
        schedule = optimizer.learning_rate(config, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch)
        return optimizer.create(config, schedule)


def budget_of(settings: ml_collections.ConfigDict, count: int, mesh: jax.sharding.Mesh) -> Budget:
    """The budget of `count` training images.

    The batch size is that of the settings, or the largest that the images fill on these devices (our choice, for few
    labels).

    Args:
        settings: With batch_size, epochs and total_steps.
        count: Training images.
        mesh: All devices.

    Returns:
        The budget.

    Raises:
        UserError: Where there is less than an image for each device, or no step.
    """
    devices = mesh.shape[sharding.DATA]
    size = min(settings.batch_size, count // devices * devices)
    if size == 0:
        raise UserError(f"labels leave {count} training images for {devices} devices: ask for more labels")
    per_epoch = count // size
    total = settings.total_steps or round(settings.epochs * per_epoch)
    if total < 1:
        raise UserError(f"epochs={settings.epochs} gives no step: set epochs or total_steps to a positive number")
    return Budget(count, size, total, per_epoch)


def view_of(settings: ml_collections.ConfigDict) -> View:
    """The one view of an augmented training image."""
    a, r = settings.augment, settings.get("randaugment", None)
    fill = tuple(min(255, round(255 * mean)) for mean in settings.data.mean)
    ops = RandAugment(**dict(r), fill=fill) if r and r.operations else None
    crop = RandomResizedCrop(
        size=tuple(settings.data.image_size),
        scale=tuple(a.crop_scale),
        ratio=tuple(a.crop_ratio),
        interpolation=a.interpolation,
        flip=a.flip,
    )
    return View(crop=crop, ingredients=(ops,) if ops else ())


def train_batches(source: Source, settings: ml_collections.ConfigDict, *, batch_size: int, start: int) -> "Labeled":
    """Batches of image and label, from step `start` on."""
    return Labeled(
        pipeline.train_batches(
            source,
            [view_of(settings)],
            data_config=settings.data,
            batch_size=batch_size,
            seed=settings.seed,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )


class Labeled:
    """Training batches reduced to what a classifier's step needs: an iterator over {image, label}."""

    def __init__(self, batches: Any):
        self.batches = batches

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self.batches)
        return {"image": batch["image"], "label": batch["label"]}

    def close(self) -> None:
        """Stops the thread that prepares batches."""
        self.batches.close()


def with_holdout(source: Source, settings: ml_collections.ConfigDict) -> Source:
    """Holds out a fraction of the training images: the learning rate is chosen on them.

    Args:
        source: Of all training images.
        settings: With holdout, the fraction, and seed.

    Returns:
        A source whose train split is the rest and whose test split is the held-out part.

    Raises:
        UserError: Where a part is empty, or the held-out images are of fewer than two classes.
    """
    data = source.split("train")
    kept, held = subsets.held_out(len(data), settings.holdout, seed=settings.seed)
    if problem := checks.labels_problem(data.labels[held], "held-out"):
        raise UserError(f"holdout={settings.holdout} chooses nothing: {problem}; raise it, or set factors=1, holdout=0")
    return subsets.Part(source, {"train": ("train", kept), "test": ("train", held)})
