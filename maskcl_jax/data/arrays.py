"""Views of images that lie in memory, decoded: numpy and Pillow, no TensorFlow."""

import concurrent.futures
import os
from collections.abc import Iterable, Iterator

import numpy as np

from maskcl_jax.data import crops
from maskcl_jax.data.order import Slots
from maskcl_jax.data.pixels import crop_and_resize, to_channels


def load(
    images: np.ndarray, slots: Iterable[Slots], views: list, *, channels: int, seed: int, threads: int
) -> Iterator[tuple[Slots, np.ndarray, dict]]:
    """The views of each batch: (slots, valid (size,) bool, {view name: (size, H, W, channels) uint8}).

    Beside them the crops (size, 5) that boxes need, by `crops.recorded`.
    images: (N, H, W, C) uint8, all of the split. threads: workers, 0 chooses; they do not change the result.
    """
    # Small pictures are made faster than Python's lock can change hands: one thread is quicker than two.
    small = max(view.size[0] * view.size[1] for view in views) <= 64 * 64
    workers = threads or (1 if small else os.cpu_count() or 1)
    recorded = crops.recorded(views)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for batch in slots:
            out = {view.name: np.zeros((batch.size, *view.size, channels), np.uint8) for view in views}
            draws = [crops.draw(view, seed=seed, epoch=batch.epoch, indices=batch.indices) for view in views]
            boxes = crops.boxes(views, [drawn.noise for drawn in draws], *images.shape[1:3])
            for view, drawn, box in zip(views, draws, boxes, strict=True):
                _fill(out[view.name], images, batch.indices, view, drawn, box, pool=pool, workers=workers)
                if view.name in recorded:
                    out[recorded[view.name]] = np.concatenate([box, drawn.flip[:, None]], axis=1).astype(np.int32)
            yield batch, np.arange(batch.size) < len(batch.indices), out


def _fill(out, images, indices, view, draws, boxes, *, pool, workers) -> None:
    def work(rows):
        for row in rows:
            pixels = crop_and_resize(
                images[indices[row]],
                boxes[row],
                size=view.master or view.size,
                interpolation=view.interpolation,
                flip=draws.flip[row],
            )
            down, across = draws.shift[row]
            window = pixels[down : down + view.size[0], across : across + view.size[1]]
            out[row] = to_channels(window, out.shape[-1])

    list(pool.map(work, np.array_split(np.arange(len(indices)), workers)))
