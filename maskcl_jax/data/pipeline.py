"""From a source to batches: what the training loop and the evaluations call.

    order (which examples make a chunk) -> load (read, decode, crop, every ingredient) -> join chunks -> prefetch

is a grain pipeline. Batch n is a pure function of (config, seed, n): which images it has follows from (seed, epoch),
and what is made of each from (seed, epoch, index of the example, name of the random stream). So a run that resumes at
step n computes batch n directly, and threads, devices, processes and prefetching change nothing.
"""

import collections
import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from maskcl_jax.data import decode
from maskcl_jax.data.loading import load_views
from maskcl_jax.data.order import CHUNK_OF_WORKER, MAX_CHUNK, EvalOrder, TrainOrder, chunk_size, local_size, subset
from maskcl_jax.data.sources import Arrays, Source, Split
from maskcl_jax.errors import UserError
from maskcl_jax.views.base import IMAGE, View, open_views
from maskcl_jax.views.batches import HostBatch
from maskcl_jax.views.crop import CenterCrop

AHEAD = 2  # batches that are joined while the accelerator works
SKIPPED = "skipped"  # of a chunk: (name, reason) of the images that could not be read
DIED = "Worker process was terminated unexpectedly"  # grain's words
MAX_WORKERS = 16
CORES_FOR_WORKERS = 4  # with fewer, they would only compete with the training step
SMALL = 64 * 64  # pixels: smaller decoded images are cropped faster than the GIL changes hands


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Whole batches in the training split. Raises UserError where there is not even one."""
    count = source.num_examples("train")
    if batch_size > count:
        raise UserError(
            f"batch_size={batch_size} is more than the {count} training images of {source.description}: "
            f"use at most {count}"
        )
    return count // batch_size


class Batches:
    """An iterator over host batches, dicts of arrays, made ahead of their use. Close it if not all are used."""

    def __init__(
        self, dataset: grain.MapDataset, source: Source | None, *, chunks: int, threads: int, workers: int = 0
    ):
        """Starts to load.

        Args:
            dataset: chunks in order.
            source: notes the images that cannot be read; None if none is skipped.
            chunks: chunks per batch.
            threads: that load chunks, if there are no workers.
            workers: processes that load chunks, each in one thread.
        """
        self._source = source
        if workers:
            if not flags.FLAGS.is_parsed():  # grain reads its own, also where this is called as a library
                flags.FLAGS.mark_as_parsed()
            reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            ready = -(-chunks // workers) + 1
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ready)
            loaded = dataset.to_iter_dataset(reading).mp_prefetch(options, worker_init_fn=_end_with_parent)
        else:
            reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, chunks))
            loaded = dataset.to_iter_dataset(reading)
        self._batches: grain.DatasetIterator | None = iter(loaded.batch(chunks, batch_fn=_join))
        # Not grain's thread: it asks for the state of the workers first, which starts them one after the other.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "data")
        self._ahead = collections.deque(self._thread.submit(self._load) for _ in range(AHEAD))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            batch = self._ahead.popleft().result()
        except RuntimeError as error:
            if DIED not in str(error):
                raise
            raise UserError(
                f"a worker process of the input pipeline died ({str(error).split('. ')[0]}), perhaps for lack of "
                "memory: set data.workers to fewer, or to 0"
            ) from None
        self._ahead.append(self._thread.submit(self._load))
        if batch is None:
            raise StopIteration
        for name, reason in batch.pop(SKIPPED):
            if self._source is not None:
                self._source.skip(name, reason)
        return batch

    def _load(self) -> dict[str, Any] | None:
        """The next batch, None at the end and behind it."""
        return next(self._batches, None) if self._batches is not None else None

    def close(self) -> None:
        """Ends threads and processes, and drops what they had ready; again, does nothing."""
        self._thread.shutdown(cancel_futures=True)
        if self._batches is not None:
            self._batches.close()
        self._batches = None  # an iterator of grain's that lives until the interpreter ends complains there

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def train_batches(
    source: Source,
    views: Sequence[View],
    *,
    data_config: Any,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Training batches start_step, start_step + 1, ... without end.

    Args:
        source: of the images.
        views: of the method; the batch has the keys of `views.base.batch_entries`.
        data_config: `config.data`.
        batch_size: of all processes together; each gets its contiguous part.
        seed: of the run.
        start_step: number of the first batch.
        process_index: of this process.
        process_count: of the run.

    Returns:
        An iterator; close it when done. An image that cannot be read is replaced by the next readable one of the epoch.

    Raises:
        UserError: a batch is larger than the split or not divisible by the processes, or an ingredient lacks its files.
    """
    steps_per_epoch(source, batch_size)  # raises if there is no whole batch
    examples = source.split("train")
    opened = open_views(views, examples, data_config)
    workers, threads = processes_and_threads(examples, opened, data_config)
    chunk = chunk_size(local_size(batch_size, process_count), CHUNK_OF_WORKER if workers else MAX_CHUNK)
    part = {"process_index": process_index, "process_count": process_count, "chunk": chunk}
    order = TrainOrder(len(examples), batch_size=batch_size, seed=seed, start_step=start_step, **part)
    load = TrainLoader(examples, opened, order, seed=seed, **_decoding(data_config))
    dataset = grain.MapDataset.source(order).map(load)
    return Batches(dataset, source, chunks=order.local // chunk, threads=threads, workers=workers)


def processes_and_threads(examples: Split, views: Sequence[View], data_config: Any) -> tuple[int, int]:
    """(worker processes, threads) that load training batches.

    `data.workers` ("auto" or a number) and `data.threads`, if they are set. Otherwise worker processes if an ingredient
    computes in Python, which only one thread of a process can do, and there are cores for them; else threads, one per
    core.
    """
    text, cores = str(data_config.workers), os.cpu_count() or 1
    in_python = any(ingredient.needs_processes() for view in views for ingredient in view.ingredients)
    workers = min(cores - 1, MAX_WORKERS) if in_python and cores >= CORES_FOR_WORKERS else 0
    return (workers if text == "auto" else int(text)), _threads(examples, views, data_config)


def describe_loading(source: Source, views: Sequence[View], data_config: Any) -> str:
    """How the training batches are loaded, for the first line of a run."""
    workers, threads = processes_and_threads(source.split("train"), views, data_config)
    problems = [problem for problem in decode.PROBLEMS.values() if problem]
    slower = f", by Pillow as {' and '.join(problems)}" if problems else ""
    return f"input by {f'{workers} worker processes' if workers else f'{threads} threads'}{slower}"


def eval_batches(
    source: Source,
    split: str,
    *,
    data_config: Any,
    batch_size: int,
    limit: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Every image of a split exactly once: dicts of `image`, `label`, `index` and `valid` (B,) bool.

    Args:
        source: of the images.
        split: "train" or "test".
        data_config: `config.data`.
        batch_size: of all processes together.
        limit: 0, or the size of a fixed subset.
        process_index: of this process.
        process_count: of the run.

    Returns:
        An iterator; close it when done. The last batch is padded (valid False, label and index -1, pixels 0), so all
        processes have as many batches; an image that cannot be read is also not valid.
    """
    examples = source.evaluated(split)
    chunk = chunk_size(local_size(batch_size, process_count))
    part = {"process_index": process_index, "process_count": process_count, "chunk": chunk}
    order = EvalOrder(subset(len(examples), limit), batch_size=batch_size, **part)
    view = View(crop=CenterCrop(size=tuple(data_config.image_size), resize=data_config.eval_resize))
    dataset = grain.MapDataset.source(order).map(EvalLoader(examples, view, **_decoding(data_config)))
    return Batches(dataset, source, chunks=order.local // chunk, threads=_threads(examples, [view], data_config))


class TrainLoader:
    """Chunk -> a part of a training batch: pixels of every view, and the arrays of every ingredient."""

    def __init__(
        self, examples: Split, views: Sequence[View], order: TrainOrder, *, seed: int, channels: int, exif: bool = False
    ):
        self.examples, self.views, self.order, self.seed = examples, views, order, seed
        self.decoding: dict[str, Any] = {"channels": channels, "exif": exif}

    def __call__(self, chunk: Any) -> dict[str, Any]:
        """(n, ...) arrays by batch key, and SKIPPED."""
        batch = HostBatch(self.views, seed=self.seed, epoch=chunk.epoch, indices=chunk.indices.copy())
        unreadable = load_views(batch, self.examples, **self.decoding)
        skipped = [(self.examples.name(chunk.indices[slot]), reason) for slot, reason in unreadable.items()]
        for slot in unreadable:
            skipped += self.replace(batch, slot)
        batch.add_ingredients()
        labels = self.examples.labels[batch.indices].astype(np.int32)
        facts = {"label": labels, "index": batch.indices.astype(np.int64), SKIPPED: skipped}
        return batch.images | batch.arrays | facts

    def replace(self, batch: HostBatch, slot: int) -> list[tuple[str, str]]:
        """Replaces an unreadable image by the next readable one of the epoch.

        Returns:
            (name, reason) of those in between that cannot be read either.
        """
        skipped = []
        for index in self.order.following(batch.epoch, int(batch.indices[slot])):
            other = HostBatch(self.views, seed=self.seed, epoch=batch.epoch, indices=np.array([index]))
            unreadable = load_views(other, self.examples, **self.decoding)
            if not unreadable:
                batch.indices[slot] = index
                for name in batch.views:
                    batch.images[name][slot], batch.crops[name][slot] = other.images[name][0], other.crops[name][0]
                for key, array in other.arrays.items():
                    batch.arrays[key][slot] = array[0]
                return skipped
            skipped.append((self.examples.name(index), unreadable[0]))
        raise UserError(f"none of the {len(self.examples)} images can be decoded: check the data")


class EvalLoader:
    """Chunk -> a part of an evaluation batch: the image as evaluations see it, padded."""

    def __init__(self, examples: Split, view: View, *, channels: int, exif: bool = False):
        self.examples, self.view = examples, view
        self.decoding: dict[str, Any] = {"channels": channels, "exif": exif}

    def __call__(self, chunk: Any) -> dict[str, Any]:
        """`image`, `label`, `index`, `valid`, each (size, ...), and SKIPPED."""
        count, indices = len(chunk.indices), chunk.indices
        batch = HostBatch([self.view], seed=0, epoch=0, indices=indices)
        unreadable = load_views(batch, self.examples, **self.decoding)
        image = np.zeros((chunk.size, *self.view.crop.size, self.decoding["channels"]), np.uint8)
        label, index = np.full(chunk.size, -1, np.int32), np.full(chunk.size, -1, np.int64)
        image[:count], label[:count], index[:count] = batch.images[IMAGE], self.examples.labels[indices], indices
        valid = np.arange(chunk.size) < count
        valid[list(unreadable)] = False
        skipped = [(self.examples.name(indices[slot]), reason) for slot, reason in unreadable.items()]
        return {IMAGE: image, "label": label, "index": index, "valid": valid, SKIPPED: skipped}


def _join(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    join = np.concatenate if len(chunks) > 1 else lambda arrays: np.asarray(arrays[0])
    joined = {key: join([chunk[key] for chunk in chunks]) for key in chunks[0] if key != SKIPPED}
    return joined | {SKIPPED: [note for chunk in chunks for note in chunk[SKIPPED]]}


def _decoding(data_config: Any) -> dict[str, Any]:
    """How images are decoded."""
    return {"channels": data_config.channels, "exif": data_config.exif}


def _end_with_parent(index: int, count: int) -> None:
    """Ends a worker when its parent has ended, for whatever reason."""
    del index, count
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _threads(examples: Split, views: Sequence[View], data_config: Any) -> int:
    """Threads that load chunks: `data.threads`, or one per CPU core; one for small decoded images."""
    small = isinstance(examples, Arrays) and max(view.crop.size[0] * view.crop.size[1] for view in views) <= SMALL
    return data_config.threads or (1 if small else os.cpu_count() or 1)
