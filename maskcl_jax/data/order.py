"""Which examples make batch n, a function of (seed, n) only: random access to the chunks that batches are loaded in.

A chunk is a contiguous part of one batch, as much as a thread loads at once. Orders are grain's random-access sources.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator

import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.views.randomness import generator

MAX_CHUNK = 32  # examples: with more, crops are drawn faster, but threads have fewer tasks to share
CHUNK_OF_WORKER = 128  # likewise of a worker process: a batch that is one chunk comes from it without another copy


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some examples of a batch.

    Attributes:
        epoch: of the run; 0 in evaluations.
        indices: (n,) int64, n <= size; the rest up to `size` is padding.
        size: examples of every chunk.
    """

    epoch: int
    indices: np.ndarray
    size: int


def local_size(batch_size: int, process_count: int) -> int:
    """Images of a batch that each process loads. Raises UserError where they do not divide."""
    if batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} does not divide by the {process_count} processes: "
            f"use a multiple of {process_count}"
        )
    return batch_size // process_count


def chunk_size(local: int, most: int = MAX_CHUNK) -> int:
    """The largest divisor of a process's part of a batch that is at most `most`."""
    return max(n for n in range(1, min(local, most) + 1) if local % n == 0)


class TrainOrder:
    """A new permutation of the examples each epoch, the remainder of the last batch dropped.

    `order[i]` is the i-th chunk of one process from step `start_step` on. `chunk` examples each; 0: the process's whole
    part of a batch.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        chunk: int = 0,
    ):
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self.start_step, self.process_index = start_step, process_index
        self.local = local_size(batch_size, process_count)
        self.chunk = chunk or self.local

    def __len__(self) -> int:
        return sys.maxsize  # endless: the run decides when to stop

    def __getitem__(self, number: int) -> Chunk:
        steps, place = divmod(number, self.local // self.chunk)
        epoch, position = divmod(self.start_step + steps, self.num_examples // self.batch_size)
        start = position * self.batch_size + self.process_index * self.local + place * self.chunk
        return Chunk(epoch, self.epoch(epoch)[start : start + self.chunk], self.chunk)

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch, (num_examples,) int64."""
        return _permutation(self.num_examples, self.seed, epoch)

    def following(self, epoch: int, index: int) -> Iterator[int]:
        """The examples after `index` in the order of an epoch, wrapping around, without `index` itself."""
        order = self.epoch(epoch)
        place = int(np.flatnonzero(order == index)[0])
        yield from order[place + 1 :].tolist()
        yield from order[:place].tolist()


@functools.lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch=epoch).permutation(num_examples)


class EvalOrder:
    """Every index once, in order: `order[i]` is the i-th chunk of one process; all processes have equally many.

    `chunk` examples each; 0: the process's whole part of a batch.
    """

    def __init__(
        self, indices: np.ndarray, *, batch_size: int, process_index: int = 0, process_count: int = 1, chunk: int = 0
    ):
        self.indices, self.batch_size, self.process_index = indices, batch_size, process_index
        self.local = local_size(batch_size, process_count)
        self.chunk = chunk or self.local

    def __len__(self) -> int:
        batches = -(-len(self.indices) // self.batch_size)
        return batches * (self.local // self.chunk)

    def __getitem__(self, number: int) -> Chunk:
        batch, place = divmod(number, self.local // self.chunk)
        end = (batch + 1) * self.batch_size
        start = batch * self.batch_size + self.process_index * self.local + place * self.chunk
        return Chunk(0, self.indices[start : min(start + self.chunk, end)], self.chunk)


def subset(num_examples: int, limit: int) -> np.ndarray:
    """Indices to evaluate, ascending: all, or where 0 < limit < num_examples a fixed random choice."""
    if not 0 < limit < num_examples:
        return np.arange(num_examples)
    # A fixed seed: runs with different seeds must be measured on the same images.
    return np.sort(generator(0, "subset").permutation(num_examples)[:limit])
