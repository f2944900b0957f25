"""Generated images: gratings whose direction is the label. No files."""

from typing import Any

import numpy as np

from maskcl_jax.data.sources.base import Arrays, Source
from maskcl_jax.errors import UserError
from maskcl_jax.views.randomness import generator


class SyntheticSource(Source):
    """`num_examples` training images and a quarter as many test images of `num_classes` noisy gratings.

    Generated at `image_size` with `channels` channels; phase, contrast and noise differ in every image.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        for field in ("num_examples", "num_classes"):
            if data_config[field] < 1:
                raise UserError(f"data.{field}={data_config[field]} is out of range: it must be at least 1")
        self._counts = {"train": data_config.num_examples, "test": max(1, data_config.num_examples // 4)}
        self._size, self._channels = tuple(data_config.image_size), data_config.channels
        self.num_classes = data_config.num_classes
        self.class_names = tuple(f"grating {i}" for i in range(self.num_classes))
        height, width = self._size
        self.description = (
            f"synthetic, {self._counts['train']} training and {self._counts['test']} test images of "
            f"{height}x{width}x{self._channels}, {self.num_classes} classes"
        )

    def num_examples(self, split: str) -> int:
        return self._counts[split]

    def load(self, split: str) -> Arrays:
        draw = generator(0, f"synthetic/{split}")
        count, (height, width) = self._counts[split], self._size
        labels = (np.arange(count) % self.num_classes).astype(np.int32)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        images = np.empty((count, height, width, self._channels), np.uint8)
        for i, label in enumerate(labels):
            angle = np.pi * label / self.num_classes
            wavelength = (4 + 3 * (label % 3)) * max(height, width) / 32
            along = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / wavelength)
            phases = draw.uniform(0, 2 * np.pi) + 0.5 * np.arange(self._channels)
            wave = np.sin(along[..., None] + phases) * draw.uniform(40, 90)
            images[i] = np.clip(128 + wave + draw.normal(0, 20, images[i].shape), 0, 255)
        return Arrays(images, labels)
