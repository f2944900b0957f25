"""Parts of a split: labeled subsets, held-out parts. Which images they hold depends on labels and a seed only."""

from collections.abc import Sequence

import numpy as np

from maskcl_jax.data.sources import SPLITS, Source, Split
from maskcl_jax.errors import UserError
from maskcl_jax.views.randomness import generator


class Part(Source):
    """Some images of a source, as a source: those that evaluations see.

    Args:
        source: The whole.
        parts: {"train": (split of the source, ascending indices or None for all), "test": ...}.
    """

    def __init__(self, source: Source, parts: dict[str, tuple[str, np.ndarray | None]]):
        super().__init__()
        self.source, self.parts = source, parts
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.description = source.description
        self.skipped = source.skipped

    def num_examples(self, split: str) -> int:
        """The number of images of "train" or "test"."""
        origin, indices = self.parts[split]
        return self.source.num_examples(origin) if indices is None else len(indices)

    def load(self, split: str) -> Split:
        """The images of a split."""
        origin, indices = self.parts[split]
        data = self.source.evaluated(origin)
        return data if indices is None else data.take(indices)

    def facts(self, splits: Sequence[str] = SPLITS) -> dict[str, int | str]:
        """Those of the whole, and the numbers and digests of these images."""
        if all(self.parts[split][0] == split and self.parts[split][1] is None for split in splits):
            return self.source.facts(splits)
        origins = dict.fromkeys(self.parts[split][0] for split in splits)
        return self.source.facts(tuple(origins)) | super().facts(splits)


def choose(labels: np.ndarray, amount: str, *, seed: int, names: tuple[str, ...] = ()) -> np.ndarray:
    """Chooses a labeled subset.

    A fraction is rounded, at least one image a class. Of one seed, a larger fraction holds the smaller ones.

    Args:
        labels: (N,) integer classes, -1 for images without a label.
        amount: "10%" of every class, "5" images of each class, or "all" labeled images.
        seed: Of the choice.
        names: Of the classes, for errors.

    Returns:
        Ascending indices (n,).

    Raises:
        UserError: For an amount of another form, or a class with fewer images than asked for.
    """
    if amount == "all":
        return np.flatnonzero(labels >= 0)
    fraction, per_class = parse_amount(amount)
    order = generator(seed, "labels").permutation(len(labels))
    chosen = []
    for label in range(len(names) or labels.max() + 1):
        members = order[labels[order] == label]
        count = per_class or max(1, round(fraction * len(members)))
        if len(members) < count:
            name = names[label] if names else label
            raise UserError(f"labels={amount!r}: class {name!r} has {len(members)} training images: ask for fewer")
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def parse_amount(amount: str) -> tuple[float, int]:
    """(fraction, 0) of "1%", (0.0, count) of "5". Raises UserError for anything else."""
    text = amount.strip()
    try:
        if text.endswith("%") and 0 < float(text[:-1]) <= 100:
            return float(text[:-1]) / 100, 0
        if int(text) > 0:
            return 0.0, int(text)
    except ValueError:
        pass
    raise UserError(f"labels={amount!r} is not understood: write all, a fraction as 1%, or images of every class as 5")


def held_out(count: int, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits `count` images at random.

    Returns:
        (kept, held out): ascending positions, at least one on either side.

    Raises:
        UserError: Where nothing is left on one side.
    """
    held = max(1, round(fraction * count))
    if not 0 < fraction < 1 or held >= count:
        raise UserError(f"holdout={fraction} leaves nothing of {count} images to train on: use for instance 0.1")
    order = generator(seed, "holdout").permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
