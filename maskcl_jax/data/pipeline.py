"""From a source to batches: what the training loop and the evaluations call.

Batch n is a pure function of the config, the seed and n. Which images it has follows from (seed, epoch); how
each is cropped, flipped and masked, from (seed, epoch, index of the example, name of the view). So a run that
resumes at step n computes batch n directly, and threads, devices and prefetching change nothing. The number
of processes changes nothing either (a global batch is the processes' slices in order), except for tfds data
sets too large for memory, where every process reads its own part.
"""

import concurrent.futures
import itertools
import os
from collections.abc import Iterator

import numpy as np

from maskcl_jax.data import arrays, boxes, cells, crops, decoding, masks, order, photometric, randaugment
from maskcl_jax.data.crops import EvalView
from maskcl_jax.data.pixels import check_interpolation
from maskcl_jax.data.prefetch import Prefetcher
from maskcl_jax.data.requests import requests
from maskcl_jax.data.saliency_maps import SalientMaps
from maskcl_jax.data.sources import Arrays, Encoded, Source
from maskcl_jax.errors import UserError
from maskcl_jax.views import IMAGE, View


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Whole batches in the training split. Raises UserError where there is not even one."""
    count = source.num_examples("train")
    if batch_size > count:
        raise UserError(
            f"batch_size={batch_size} is more than the {count} training images of {source.description}: "
            f"use at most {count}"
        )
    return count // batch_size


def read_in_parts(source: Source) -> bool:
    """Whether every process reads its own part of the training split, so that their number changes the order."""
    return not isinstance(source.split("train"), Arrays | Encoded)


def open_maps(source: Source, views: list[View], data_config) -> SalientMaps | None:
    """The maps that the views' cell masks are to follow, where they are files of the user's; cheap.

    Raises UserError where they do not fit the training images.
    """
    folders = {view.cells.maps_path for view in views if view.cells and view.cells.provider == "maps"}
    return SalientMaps(folders.pop(), source.split("train"), data_config.path) if folders else None


def train_batches(
    source: Source,
    views: list[View],
    *,
    data_config,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Prefetcher:
    """Training batches start_step, start_step + 1, ... without end: dicts as `maskcl_jax.views` says.

    batch_size: of all processes together; each gets its slice. The result is an iterator; close it when done.
    An image that cannot be read is replaced by the next readable one of the batch. Raises UserError for a
    batch larger than the split or not divisible by the processes.
    """
    for view in views:
        check_interpolation(view.interpolation)
    steps_per_epoch(source, batch_size)
    local = order.local_size(batch_size, process_count)
    part = {"process_index": process_index, "process_count": process_count}
    split, maps = source.split("train"), open_maps(source, views, data_config)
    if isinstance(split, Arrays | Encoded):
        slots = (
            order.train_slots(step, num_examples=len(split), batch_size=batch_size, seed=seed, **part)
            for step in itertools.count(start_step)
        )
        asked = slots if isinstance(split, Arrays) else requests(split, slots)
    else:
        asked = split.train_requests(start_step, batch_size=batch_size, seed=seed, **part)
    made = _train(source, split, asked, views, data_config=data_config, local=local, seed=seed, maps=maps)
    return Prefetcher(made)


def eval_batches(
    source: Source,
    split: str,
    *,
    data_config,
    batch_size: int,
    limit: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Prefetcher:
    """Every image of a split exactly once: dicts of `image`, `label`, `index` and `valid` (B,) bool.

    The last batch is padded (valid False, label and index -1, pixels 0), so all processes have as many
    batches; an image that cannot be read is also not valid. limit: 0, or the size of a fixed subset spread
    over the split. The result is an iterator; close it when done.
    """
    data = source.evaluated(split)
    local = order.local_size(batch_size, process_count)
    part = {"batch_size": batch_size, "process_index": process_index, "process_count": process_count}
    if isinstance(data, Arrays | Encoded):
        slots = iter(order.eval_slots(order.subset(len(data), limit), **part))
        asked = slots if isinstance(data, Arrays) else requests(data, slots)
    else:
        asked = data.eval_requests(limit, **part)
    view = EvalView(size=tuple(data_config.image_size), resize=data_config.eval_resize)
    return Prefetcher(_eval(source, data, asked, view, data_config=data_config, local=local))


def _train(source, split, asked, views, *, data_config, local, seed, maps) -> Iterator[dict]:
    loaded = _load(source, split, asked, views, data_config=data_config, local=local, seed=seed)
    waiting = []  # batches without one readable image: they take theirs from the next batch that has some
    with concurrent.futures.ThreadPoolExecutor(data_config.threads or os.cpu_count() or 1) as pool:
        more = {"views": views, "seed": seed, "maps": maps, "pool": pool}
        for slots, labels, valid, pictures in loaded:
            if not valid.any():
                waiting.append(slots)
                continue
            good = np.flatnonzero(valid)
            # For every slot the next readable one, going round.
            chosen = good[np.searchsorted(good, np.arange(local)) % len(good)]
            for empty in waiting:
                yield _train_batch(empty.epoch, slots, labels, pictures, np.full(local, good[0]), **more)
            waiting = []
            yield _train_batch(slots.epoch, slots, labels, pictures, chosen, **more)


def _train_batch(epoch, slots, labels, pictures, chosen, *, views, seed, maps, pool) -> dict:
    whole = np.array_equal(chosen, np.arange(len(chosen)))
    batch = {name: picture if whole else picture[chosen] for name, picture in pictures.items()}
    indices = slots.indices[chosen]
    for view in views:
        batch |= randaugment.draw(view, batch[view.name], seed=seed, epoch=epoch, indices=indices)
        batch |= masks.draw(view, seed=seed, epoch=epoch, indices=indices)
        batch |= photometric.draw(view, seed=seed, epoch=epoch, indices=indices)
        batch |= cells.draw(view, batch[view.name], seed=seed, epoch=epoch, indices=indices, maps=maps)
        if view.on_host is not None:  # after the cells, whose saliency is that of the view as it was cut
            colours = batch.pop(view.key("photometric"))
            batch[view.name] = photometric.change(batch[view.name], colours, view.on_host, pool)
        if view.shift:
            shift = crops.draw_shift(view, seed=seed, epoch=epoch, indices=indices)
            batch[view.key("shift")] = shift.astype(np.int32)
    shown = {name: batch.pop(key) for name, key in crops.recorded(views).items()}
    batch |= boxes.draw(views, shown, seed=seed, epoch=epoch, indices=indices)
    return batch | {"label": labels[chosen], "index": indices.astype(np.int64)}


def _eval(source, split, asked, view, *, data_config, local) -> Iterator[dict]:
    for slots, labels, valid, pictures in _load(
        source, split, asked, [view], data_config=data_config, local=local, seed=0
    ):
        index = np.full(local, -1, np.int64)
        index[: len(slots.indices)] = slots.indices
        yield {IMAGE: pictures[IMAGE], "label": labels, "index": index, "valid": valid}


def _load(source, split, asked, views, *, data_config, local, seed) -> Iterator[tuple]:
    """(slots, labels (local,), valid (local,), {view: (local, H, W, C)}) for every batch."""
    options = {"channels": data_config.channels, "seed": seed, "threads": data_config.threads}
    if isinstance(split, Arrays):
        for slots, valid, pictures in arrays.load(split.images, asked, views, **options):
            yield slots, _padded(split.labels[slots.indices], local), valid, pictures
        return
    is_path = isinstance(split, Encoded) and split.is_path
    for decoded in decoding.decode(asked, views, batch=local, is_path=is_path, patience=len(split) // local, **options):
        request = decoded.request
        for slot, reason in sorted(decoded.reasons.items()):
            source.skip(request.name(request.slots.indices[slot]), reason)
        yield request.slots, _padded(request.labels, local), decoded.valid, decoded.views


def _padded(labels, local) -> np.ndarray:
    return np.concatenate([labels, np.full(local - len(labels), -1)]).astype(np.int32)
