"""Parts of a split: labelled subsets, held-out parts. Which images they hold follows from labels and a seed alone."""

import numpy as np

from maskcl_jax.data.randomness import generator
from maskcl_jax.data.sources import Arrays, Encoded, Source
from maskcl_jax.data.tfds_stream import Records
from maskcl_jax.errors import UserError


class Part(Source):
    """Some images of a source as a source. parts: {"train": (split of the source, indices or None for all), ...}."""

    def __init__(self, source: Source, parts: dict[str, tuple[str, np.ndarray | None]]):
        super().__init__()
        self.source, self.parts = source, parts
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.description = source.description
        self.skipped = source.skipped

    def num_examples(self, split):
        origin, indices = self.parts[split]
        return self.source.num_examples(origin) if indices is None else len(indices)

    def load(self, split):
        origin, indices = self.parts[split]
        return taken(self.source.split(origin), indices)

    def evaluated(self, name):
        origin, indices = self.parts[name]
        return taken(self.source.evaluated(origin), indices)


def taken(data, indices: np.ndarray | None):
    """Some images of a split that lies in memory, or is read once to bring them there."""
    if indices is None:
        return data
    if isinstance(data, Arrays):
        return Arrays(data.images[indices], data.labels[indices])
    if isinstance(data, Encoded):
        return Encoded([data.payloads[i] for i in indices], data.labels[indices], data.is_path)
    payloads, labels = data.pick(indices)
    return Encoded(payloads, labels, is_path=False)


def labels_of(data) -> np.ndarray:
    """(N,) int32 labels of a split, -1 for none."""
    return data.all_labels() if isinstance(data, Records) else data.labels


def chosen(labels: np.ndarray, amount: str, *, seed: int, names: tuple[str, ...] = ()) -> np.ndarray:
    """Ascending indices of a labelled subset: "10%" of every class, or "5" images of each; "all": all labelled.

    A share is rounded, at least one image a class. A larger share of one seed holds the smaller ones. Raises UserError
    for an amount that is no such, and for a class that has fewer images than asked.
    """
    if amount == "all":
        return np.flatnonzero(labels >= 0)
    share, per_class = parsed(amount)
    order = generator(seed, "labels").permutation(len(labels))
    found = []
    for label in range(len(names) or labels.max() + 1):
        members = order[labels[order] == label]
        count = per_class or max(1, round(share * len(members)))
        if len(members) < count:
            name = names[label] if names else label
            raise UserError(f"labels={amount!r}: class {name!r} has {len(members)} training images: ask for fewer")
        found.append(members[:count])
    return np.sort(np.concatenate(found))


def parsed(amount: str) -> tuple[float, int]:
    """(share, 0) of "1%", (0.0, count) of "5". Raises UserError for anything else."""
    text = amount.strip()
    try:
        if text.endswith("%") and 0 < float(text[:-1]) <= 100:
            return float(text[:-1]) / 100, 0
        if int(text) > 0:
            return 0.0, int(text)
    except ValueError:
        pass
    raise UserError(f"labels={amount!r} is not understood: write all, a share as 1%, or images of every class as 5")


def held_out(count: int, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) ascending positions of `count` images; at least one on either side. Raises UserError if not."""
    held = max(1, round(share * count))
    if not 0 < share < 1 or held >= count:
        raise UserError(f"holdout={share} leaves nothing of {count} images to train on: use for instance 0.1")
    order = generator(seed, "holdout").permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])
