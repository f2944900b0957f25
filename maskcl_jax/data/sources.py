"""Where images come from: the face that every source shows to the pipeline, and the word that chooses one."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from maskcl_jax.errors import UserError

SPLITS = ("train", "test")
SOURCES = ("embedded", "tfds", "folder", "npz", "synthetic", "scenes")


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A split in memory, decoded. images: (N, H, W, C) uint8. labels: (N,) int32, -1 for none."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"example {index}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A split of encoded images with random access.

    payloads: N file paths (str), or N encoded images (bytes). labels: (N,) int32, -1 for none.
    """

    payloads: Sequence[str] | Sequence[bytes]
    labels: np.ndarray
    is_path: bool

    def __len__(self):
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.payloads[index] if self.is_path else f"example {index}"


class Source:
    """One data set. A subclass fills the attributes and implements `num_examples` and `load`.

    num_classes: 0 where there are no labels. class_names: one for each class. description: one line for the
    first line of a run. skipped: the images that could not be read so far, name -> reason; it grows while
    batches are drawn.
    """

    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    description: str = ""

    def __init__(self):
        self.skipped: dict[str, str] = {}
        self._splits = {}

    def num_examples(self, split: str) -> int:
        """How many images "train" or "test" has."""
        raise NotImplementedError

    def load(self, split: str):
        """Reads a split: Arrays, Encoded, or tfds_stream.Records. Called once; use `split`."""
        raise NotImplementedError

    def split(self, name: str):
        """The images of "train" or "test", loaded on the first call."""
        if name not in SPLITS:
            raise UserError(f"split {name!r} is unknown: use one of {', '.join(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self.load(name)
        return self._splits[name]

    def evaluated(self, name: str):
        """The images of "train" or "test" that an evaluation sees: as here those of `split`, or others."""
        return self.split(name)

    def skip(self, name: str, reason: str) -> None:
        """Notes an image that cannot be read; names it in the log the first time."""
        if name not in self.skipped:
            self.skipped[name] = reason
            logging.warning("skipping an image that cannot be read: %s (%s)", name, reason)


def open_source(data_config) -> Source:
    """Opens the data set that `config.data` describes; cheap, the images are read later.

    Raises UserError where a field has an impossible value or the data is not there.
    """
    kind, channels = data_config.source, data_config.channels
    if kind not in SOURCES:
        raise UserError(f"data.source={kind!r} is unknown: use one of {', '.join(SOURCES)}")
    if kind in ("folder", "tfds") and channels not in (1, 3):
        raise UserError(f"data.channels={channels} is not possible with data.source={kind!r}: use 1 or 3")
    if data_config.eval_resize < 1:
        raise UserError(f"data.eval_resize={data_config.eval_resize} is out of range: use 1.0 or more, as 256/224")
    # Imported here: one source must not need the libraries of another.
    if kind == "embedded":
        from maskcl_jax.data.embedded import EmbeddedSource as chosen
    elif kind == "synthetic":
        from maskcl_jax.data.synthetic import SyntheticSource as chosen
    elif kind == "folder":
        from maskcl_jax.data.folder import FolderSource as chosen
    elif kind == "npz":
        from maskcl_jax.data.npz import NpzSource as chosen
    elif kind == "scenes":
        from maskcl_jax.data.scenes import ScenesSource as chosen
    else:
        from maskcl_jax.data.tfds_source import TfdsSource as chosen
    return chosen(data_config)
