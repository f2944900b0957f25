"""Which examples make batch n."""

import dataclasses
import functools

import numpy as np

from maskcl_jax.data.randomness import generator
from maskcl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Slots:
    """One process's part of a batch: indices (n,) int64, n <= size; the rest up to `size` is padding."""

    step: int
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


def train_slots(
    step: int, *, num_examples: int, batch_size: int, seed: int, process_index: int, process_count: int
) -> Slots:
    """The part of training batch `step`: slices of a new permutation each epoch, the remainder dropped."""
    size = local_size(batch_size, process_count)
    epoch, position = divmod(step, num_examples // batch_size)
    start = position * batch_size + process_index * size
    return Slots(step, epoch, epoch_order(num_examples, seed, epoch)[start : start + size], size)


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch, (num_examples,) int64."""
    return generator(seed, "order", epoch=epoch).permutation(num_examples)


def eval_slots(indices: np.ndarray, *, batch_size: int, process_index: int, process_count: int) -> list[Slots]:
    """One process's part of every batch of an evaluation over `indices`; as many in every process."""
    size = local_size(batch_size, process_count)
    starts = range(0, len(indices), batch_size)
    parts = [indices[start : start + batch_size][process_index * size :][:size] for start in starts]
    return [Slots(step, 0, part, size) for step, part in enumerate(parts)]


def subset(num_examples: int, limit: int) -> np.ndarray:
    """Indices to evaluate, ascending: all, or where 0 < limit < num_examples a fixed random choice."""
    if not 0 < limit < num_examples:
        return np.arange(num_examples)
    # A fixed seed: runs with different seeds must be measured on the same images.
    return np.sort(generator(0, "subset").permutation(num_examples)[:limit])


def spread_runs(num_examples: int, limit: int, runs: int = 64) -> np.ndarray:
    """As `subset`, in a few evenly spaced runs of neighbours, for data that is read in sequence."""
    if not 0 < limit < num_examples:
        return np.arange(num_examples)
    runs = min(runs, limit)
    starts = np.arange(runs) * num_examples // runs
    lengths = np.diff(np.arange(runs + 1) * limit // runs)
    return np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
