"""A TFDS split too large for memory: its records in a shuffled order that depends on (seed, epoch) alone.

Record files have no random access, so every process reads its own contiguous part of the split, every epoch:
the files in a shuffled order, sixteen of them interleaved, then a shuffle buffer. Resuming in an epoch skips
records without decoding them. How an image is cropped and masked follows from its place in the split, as for
any source.
"""

import functools
from collections.abc import Iterator

import numpy as np

from maskcl_jax.data import order
from maskcl_jax.data.randomness import generator
from maskcl_jax.data.requests import Request
from maskcl_jax.errors import UserError

MIN_BUFFER, MAX_BUFFER = 1024, 16384  # images in the shuffle buffer


class Records:
    """The records of one split.

    source: the TfdsSource. instruction: the split as TFDS writes it. splits: of the builder's info. buffer:
    images that the shuffle buffer may hold, encoded.
    """

    def __init__(self, source, instruction: str, splits, *, buffer: int):
        self._source, self._instruction = source, instruction
        self._count = splits[instruction].num_examples
        self._buffer = int(np.clip(buffer, MIN_BUFFER, MAX_BUFFER))
        self._base, self._start = _one_range(instruction, splits)
        files, lengths = sorted(splits[self._base].filenames), splits[self._base].shard_lengths
        starts = np.cumsum([0, *lengths[:-1]]) - self._start
        self._file_starts = dict(zip(files, starts.tolist(), strict=True))

    def __len__(self):
        return self._count

    def name(self, index: int) -> str:
        """What to call an example in the log."""
        return f"{self._instruction} example {index}"

    def train_requests(
        self, start_step: int, *, batch_size: int, seed: int, process_index: int, process_count: int
    ) -> Iterator[Request]:
        """Requests of one process from `start_step` on, without end."""
        size = order.local_size(batch_size, process_count)
        steps = self._count // batch_size
        share = self._count // process_count
        part = np.arange(process_index * share, (process_index + 1) * share)
        first_epoch, skipped = divmod(start_step, steps)
        epoch = first_epoch
        while True:
            shuffle = int(generator(seed, f"files/{process_index}", epoch=epoch).integers(2**31))
            dataset = self._source.dataset(self._read(part), shuffle_seed=shuffle, with_id=True)
            dataset = dataset.shuffle(self._buffer, seed=shuffle, reshuffle_each_iteration=False)
            batches = dataset.skip(skipped * size).batch(size).prefetch(2).as_numpy_iterator()
            for position, examples in zip(range(skipped, steps), batches, strict=False):
                yield self._request(epoch * steps + position, epoch, examples, size)
            epoch, skipped = epoch + 1, 0

    def eval_requests(
        self, limit: int, *, batch_size: int, process_index: int, process_count: int
    ) -> Iterator[Request]:
        """Requests of one process for all examples, or for `limit` of them, each once."""
        size = order.local_size(batch_size, process_count)
        wanted = order.spread_runs(self._count, limit)
        share = -(-len(wanted) // process_count)
        part = wanted[process_index * share : (process_index + 1) * share]
        batches = iter(())
        if len(part):
            dataset = self._source.dataset(self._read(part), with_id=True)
            batches = dataset.batch(size).prefetch(2).as_numpy_iterator()
        for step in range(-(-share // size)):
            yield self._request(step, 0, next(batches, None), size)

    def all_labels(self) -> np.ndarray:
        """(N,) int32: reads the whole split, without decoding an image."""
        return np.concatenate([labels for _, labels in self._scan()])

    def pick(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """(encoded images, labels) at ascending places of the split, which is read once."""
        payloads, found, start = [], [], 0
        for images, labels in self._scan():
            first, last = np.searchsorted(indices, [start, start + len(labels)])
            places = indices[first:last] - start
            payloads += images[places].tolist()
            found.append(labels[places])
            start += len(labels)
        return payloads, np.concatenate(found)

    def _scan(self):
        for examples in self._source.dataset(self._instruction).batch(1024).as_numpy_iterator():
            yield self._source.images(examples), self._source.labels(examples)

    def _request(self, step: int, epoch: int, examples: dict | None, size: int) -> Request:
        """examples: a batch of undecoded examples, None for a batch that is padding alone."""
        if examples is None:
            empty = np.zeros(0, np.int64)
            return Request(order.Slots(step, epoch, empty, size), np.zeros(0, object), empty, self.name)
        indices = np.array([self._index(tfds_id) for tfds_id in examples["tfds_id"]], np.int64)
        slots = order.Slots(step, epoch, indices, size)
        return Request(slots, self._source.images(examples), self._source.labels(examples), self.name)

    def _index(self, tfds_id: bytes) -> int:
        """`imagenet2012-train.tfrecord-00003-of-01024__45` -> the place in the split."""
        file, _, place = tfds_id.decode().rpartition("__")
        return self._file_starts[file] + int(place)

    def _read(self, indices: np.ndarray):
        """A TFDS instruction that reads ascending places of the split, as few ranges as possible."""
        import tensorflow_datasets as tfds

        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        ranges = [(int(run[0]) + self._start, int(run[-1]) + 1 + self._start) for run in np.split(indices, breaks)]
        parts = [tfds.core.ReadInstruction(self._base, from_=a, to=b, unit="abs") for a, b in ranges]
        return functools.reduce(lambda left, right: left + right, parts)


def _one_range(instruction: str, splits) -> tuple[str, int]:
    """(split of the files, first place) of an instruction such as `train` or `train[10%:]`."""
    import tensorflow_datasets as tfds

    ranges = tfds.core.ReadInstruction.from_spec(instruction).to_absolute(splits)
    if len(ranges) != 1:
        raise UserError(
            f"data split {instruction!r} joins splits that do not fit in data.cache_mb: raise it, or choose one split"
        )
    return ranges[0].splitname, ranges[0].from_ or 0
