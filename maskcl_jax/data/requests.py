"""What the decoder is asked for: the encoded images of one batch. Here for sources with random access."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from maskcl_jax.data.order import Slots
from maskcl_jax.data.sources import Encoded


@dataclasses.dataclass(frozen=True)
class Request:
    """The encoded images of one process's part of a batch.

    payloads: (n,) bytes objects, one for each of slots.indices: file paths or encoded images. labels: (n,)
    int32. name: index -> what to call the image in the log.
    """

    slots: Slots
    payloads: np.ndarray
    labels: np.ndarray
    name: Callable[[int], str]


def requests(split: Encoded, slots: Iterable[Slots]) -> Iterator[Request]:
    """One request a batch."""
    for batch in slots:
        payloads = [split.payloads[i] for i in batch.indices]
        if split.is_path:
            payloads = [path.encode("utf-8", "surrogateescape") for path in payloads]
        yield Request(batch, np.array(payloads, object), split.labels[batch.indices], split.name)
