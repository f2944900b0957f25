"""What every source offers: splits with random access, and a record of the images that could not be read."""

import abc
import collections
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from maskcl_jax.data import decode
from maskcl_jax.errors import UserError

SPLITS = ("train", "test")
PREFIX = {"train": "", "test": "test_"}  # of the names of facts that are of one split
NAMED = 3  # examples in a message
TEST_FRACTION = 0.1  # held out of labeled images where nothing is given to test on


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A split that is decoded and lies in memory.

    Attributes:
        images: (N, H, W, C) uint8.
        labels: (N,) int32, -1 for none.
        marks: (N, ...) integers that tell one image from another without its pixels, None where there are none.
    """

    images: np.ndarray
    labels: np.ndarray
    marks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        """The image (H, W, C) uint8 at `index`."""
        return self.images[index]

    def name(self, index: int) -> str:
        """What to call an image in the log."""
        return f"example {index}"

    def take(self, indices: np.ndarray) -> "Arrays":
        """The images at `indices`, in that order."""
        return Arrays(self.images[indices], self.labels[indices], _taken(self.marks, indices))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A split of encoded images that are read one by one.

    Attributes:
        payloads: N file paths (str), or a sequence of N encoded images (bytes), which may read them only when indexed.
        labels: (N,) int32, -1 for none.
        is_path: Whether payloads are file paths.
        marks: As those of `Arrays`; of file paths there are none.
    """

    payloads: Sequence[str] | Sequence[bytes]
    labels: np.ndarray
    is_path: bool
    marks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> bytes:
        """The encoded image at `index`. Raises OSError where it cannot be read."""
        payload = self.payloads[index]
        if isinstance(payload, bytes):
            return payload
        with open(payload, "rb", buffering=0) as file:
            return file.read()

    def name(self, index: int) -> str:
        """What to call an image in the log."""
        return str(self.payloads[index]) if self.is_path else f"example {index}"

    def take(self, indices: np.ndarray) -> "Encoded":
        """The images at `indices`, in that order; none is read."""
        payloads, marks = Selection(self.payloads, indices), _taken(self.marks, indices)
        return Encoded(payloads, self.labels[indices], self.is_path, marks)

    def hold_out(self, names: Sequence[str]) -> "tuple[Encoded, Encoded]":
        """(train, test): a tenth of every class, at least one of two, is for testing.

        names: By whose hashes images are chosen, so that new images move few others.
        """
        kept, held_out = hold_out_by_name(names, self.labels)
        return self.take(kept), self.take(held_out)


class Selection(Sequence):
    """Some elements of a sequence, which are looked up when indexed."""

    def __init__(self, sequence: Sequence, indices: np.ndarray):
        self._sequence, self._indices = sequence, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._sequence[self._indices[index]]


def _taken(marks: np.ndarray | None, indices: np.ndarray) -> np.ndarray | None:
    return None if marks is None else marks[indices]


Split = Arrays | Encoded


class Source(abc.ABC):
    """One data set. A subclass sets the attributes and implements `load`.

    Attributes:
        num_classes: 0 where there are no labels.
        class_names: One for each class.
        description: What the first line of a run says of the data.
        skipped: Images that could not be read so far, name -> reason; grows while batches are made.
    """

    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    description: str = ""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self._splits: dict[str, Split] = {}

    @abc.abstractmethod
    def load(self, split: str) -> Split:
        """Opens a split. Called once for each; use `split`."""

    def num_examples(self, split: str) -> int:
        """How many images "train" or "test" has."""
        return len(self.split(split))

    def split(self, name: str) -> Split:
        """The images of "train" or "test", loaded on the first call."""
        if name not in SPLITS:
            raise UserError(f"split {name!r} is unknown: use one of {', '.join(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self.load(name)
        return self._splits[name]

    def evaluated(self, name: str) -> Split:
        """The images of "train" or "test" that an evaluation sees; those of `split` unless a source differs."""
        return self.split(name)

    def facts(self, splits: Sequence[str] = SPLITS) -> dict[str, int | str]:
        """What tells this data set from another, wherever its folder lies.

        Args:
            splits: Whose images are told from others; these splits are opened.

        Returns:
            {train, test: numbers of images, classes, digest and test_digest: of the images' labels and of their names
            below the folder that holds them all; marks and test_marks: of what else tells images apart, if there are
            such marks}.
        """
        counts = {name: self.num_examples(name) for name in SPLITS}
        facts: dict[str, int | str] = {**counts, "classes": self.num_classes}
        for name in splits:
            split, prefix = self.split(name), PREFIX[name]
            facts[f"{prefix}digest"] = _digest_of_labels_and_names(split)
            if split.marks is not None:
                facts[f"{prefix}marks"] = digest_of(split.marks)
        return facts

    def describe(self, what: str, notes: Sequence[str] = ()) -> str:
        """A `description`: what the data are, how many, and what else must be said of them."""
        counts = f"{self.num_examples('train')} training and {self.num_examples('test')} test images"
        classes = f"{self.num_classes} classes" if self.num_classes else "no labels"
        remarks = f" ({'; '.join(notes)})" if notes else ""
        return f"{what}, {counts}, {classes}{remarks}"

    def skip(self, name: str, reason: str) -> None:
        """Records an image that cannot be read, and logs its name the first time."""
        if name not in self.skipped:
            self.skipped[name] = reason
            logging.warning("skipping an image that cannot be read: %s (%s)", name, reason)

    def check_readable(self, images: Encoded, what: str, data_config: Any) -> None:
        """Raises UserError where no image can be read. Stops at the first: all would take as long as an epoch."""
        for index in range(len(images)):
            try:
                decode.decode(images[index], data_config.channels, exif=data_config.exif)
                return
            except Exception as error:  # the decoders raise a dozen types
                self.skip(images.name(index), decode.reason_of(error))
        first, endings = images.name(0), ", ".join(decode.EXTENSIONS)
        raise UserError(
            f"{what} has no readable image: all {len(images)} fail to decode, as {os.path.basename(first)} "
            f"({self.skipped[first]}); give {endings} files of data.channels={data_config.channels}"
        )


def hold_out_by_name(names: Sequence[str], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a tenth of every class, at least one image of two; the hashes of names choose, so new ones move few.

    Args:
        names: Of N images.
        labels: (N,) their classes, -1 of images that are kept.

    Returns:
        (kept, held out): ascending positions.
    """
    hashes = [hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    order = np.lexsort((np.array(hashes), labels))
    classes, start, count = np.unique(labels[order], return_index=True, return_counts=True)
    wanted = np.where((classes >= 0) & (count > 1), np.maximum(np.round(TEST_FRACTION * count), 1), 0)
    chosen = np.arange(len(order)) - np.repeat(start, count) < np.repeat(wanted, count)
    return np.sort(order[~chosen]), np.sort(order[chosen])


def in_words(counts: collections.Counter[str]) -> str:
    """Kinds of files and how many there are: "2 .heic, 1 hidden"."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5))


def examples(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def digest_of(array: np.ndarray) -> str:
    """A digest of an array's bytes."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def _digest_of_labels_and_names(split: Split) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(split.labels, np.int32).tobytes(), digest_size=16)
    if isinstance(split, Encoded) and split.is_path and len(split):
        names = [split.name(index) for index in range(len(split))]
        folder = os.path.commonpath({os.path.dirname(name) for name in names})
        for name in names:
            plain = name.startswith(folder + "/") and "/." not in name and "//" not in name
            below = name[len(folder) + 1 :] if plain else os.path.relpath(name, folder)  # which takes 30 times as long
            digest.update(below.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
