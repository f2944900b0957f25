"""Images of several objects: each is composed of four images of another source, two by two.

Training sees scenes, which have no label. Evaluation sees their quadrants, each an image of the other source with its
label. So an encoder that is trained on scenes and one that is trained on that source are measured on the same images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskcl_jax.data.sources import open_source
from maskcl_jax.data.sources.base import PREFIX, SPLITS, Arrays, Source
from maskcl_jax.errors import UserError
from maskcl_jax.views.randomness import generator

PARTS = ("embedded", "tfds", "npz", "synthetic")


class ScenesSource(Source):
    """As many scenes as `data.parts` has images; each image is in four of them, once in each quadrant.

    Which four images make a scene is the same in every run.

    Raises:
        UserError: The images do not lie decoded in memory, all of one size.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        if data_config.parts not in PARTS:
            raise UserError(f"data.parts={data_config.parts!r} is unknown: use one of {', '.join(PARTS)}")
        of_parts = data_config.copy_and_resolve_references()
        of_parts.source = data_config.parts
        self._parts = open_source(of_parts)
        self.num_classes, self.class_names = self._parts.num_classes, self._parts.class_names
        self.skipped = self._parts.skipped
        self.description = f"scenes of four: {self._parts.description}"

    def num_examples(self, split: str) -> int:
        return self._parts.num_examples(split)

    def facts(self, splits: Sequence[str] = SPLITS) -> dict[str, int | str]:
        """The numbers of images and classes, and what tells the images of `data.parts` from others: `parts_...`.

        Of test images it is `test_parts_...`.
        """
        facts = self._parts.facts(splits)
        counts = {name: facts.pop(name) for name in (*SPLITS, "classes")}
        return counts | {_of_parts(name): value for name, value in facts.items()}

    def load(self, split: str) -> Arrays:
        quadrants, order = self.evaluated(split).images, self.quadrants(split)
        height, width = quadrants.shape[1:3]
        images = np.empty((len(order), 2 * height, 2 * width, quadrants.shape[3]), np.uint8)
        for place in range(4):
            down, across = (place // 2) * height, (place % 2) * width
            images[:, down : down + height, across : across + width] = quadrants[order[:, place]]
        return Arrays(images, np.full(len(order), -1, np.int32))

    def evaluated(self, name: str) -> Arrays:
        split = self._parts.split(name)
        if not isinstance(split, Arrays):
            raise UserError(
                "data.source='scenes' needs images of one size that fit in data.cache_mb, which it does not get from "
                f"{self._parts.description}: raise data.cache_mb or choose another data.name"
            )
        return split

    def quadrants(self, split: str) -> np.ndarray:
        """Which images make each scene, (N, 4): top left, top right, bottom left, bottom right."""
        draw, count = generator(0, f"scenes/{split}"), len(self.evaluated(split))
        return np.stack([draw.permutation(count) for _ in range(4)], axis=1)


def _of_parts(fact: str) -> str:
    """`digest` -> `parts_digest`, `test_digest` -> `test_parts_digest`: the name says of which split a fact is."""
    prefix = PREFIX["test"] if fact.startswith(PREFIX["test"]) else ""
    return f"{prefix}parts_{fact.removeprefix(prefix)}"
