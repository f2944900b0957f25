"""Views of encoded images: read, decoded, cropped and resized by threads, a batch ahead of the one in use."""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from maskcl_jax.data import crops, pixels
from maskcl_jax.data.requests import Request
from maskcl_jax.errors import UserError

CHUNK = 16, 64  # the fewest and the most images that a thread takes at once: drawing the crops of more costs less
AHEAD = 2  # requests in work: while the threads end one, they have the next to begin


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A request and what became of it.

    valid: (batch,) bool, which images could be read. views: {name: (batch, H, W, C) uint8}, zeros where they could
    not; among them the crops (batch, 5) int32 that boxes need, by `crops.recorded`. reasons: {slot: why not}.
    """

    request: Request
    valid: np.ndarray
    views: dict[str, np.ndarray]
    reasons: dict[int, str]


def decode(
    requests: Iterator[Request],
    views: list,
    *,
    batch: int,
    channels: int,
    seed: int,
    threads: int,
    is_path: bool,
    patience: int,
) -> Iterator[Decoded]:
    """One Decoded a request, in order.

    batch: the most images a request has. threads: 0 means one a core; without effect on the result. patience:
    requests in a row without one readable image; one more, and it raises UserError.
    """
    worker = _Worker(views, channels=channels, seed=seed, is_path=is_path)
    threads, empty = threads or os.cpu_count() or 1, 0
    chunk = int(np.clip(batch // threads, *CHUNK))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for decoded in _in_order(pool, worker, requests, batch, chunk):
            empty = empty + 1 if len(decoded.request.payloads) and not decoded.valid.any() else 0
            if empty > patience + 1:
                raise UserError(f"not one image of {empty} batches can be decoded: check the data")
            yield decoded


def _in_order(pool, worker: "_Worker", requests, batch: int, chunk: int) -> Iterator[Decoded]:
    """Every request when its last chunk is done, AHEAD of them in work."""
    pending = collections.deque()
    try:
        for request in requests:
            decoded = worker.blank(request, batch)
            starts = range(0, len(request.payloads), chunk)
            pending.append((decoded, [pool.submit(worker.fill, decoded, slice(s, s + chunk)) for s in starts]))
            if len(pending) > AHEAD:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:
        for _, futures in pending:
            for future in futures:
                future.cancel()


def _finished(decoded: Decoded, futures) -> Decoded:
    for future in futures:
        future.result()
    return decoded


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What a thread needs to know to make views."""

    views: list
    _: dataclasses.KW_ONLY
    channels: int
    seed: int
    is_path: bool

    def blank(self, request: Request, batch: int) -> Decoded:
        """A Decoded without an image."""
        made = {view.name: np.zeros((batch, *view.size, self.channels), np.uint8) for view in self.views}
        made |= {key: np.zeros((batch, 5), np.int32) for key in crops.recorded(self.views).values()}
        return Decoded(request, np.zeros(batch, bool), made, {})

    def fill(self, decoded: Decoded, chunk: slice) -> None:
        """The views of some of the images of a request."""
        request, slots, files, sizes = decoded.request, [], [], []
        for slot, payload in enumerate(request.payloads[chunk], chunk.start):
            try:
                data = _read(payload) if self.is_path else payload
                sizes.append(pixels.size_of(data))
            except Exception as error:  # the decoders raise a dozen types
                decoded.reasons[slot] = reason_of(error)
            else:
                slots.append(slot)
                files.append(data)
        if not slots:
            return
        drawn = {"seed": self.seed, "epoch": request.slots.epoch, "indices": request.slots.indices[slots]}
        draws = [crops.draw(view, **drawn) for view in self.views]
        boxes = crops.boxes(self.views, [d.noise for d in draws], *np.array(sizes).T)
        recorded = crops.recorded(self.views)
        rows = np.max([box[:, 0] + box[:, 2] for box in boxes], axis=0)
        backwards = np.all([d.flip for d in draws], axis=0).tolist()  # with a view as it is, it would not pay
        for i, (slot, data) in enumerate(zip(slots, files, strict=True)):
            try:
                image = pixels.decode_top(data, self.channels, int(rows[i]), backwards=backwards[i])
            except Exception as error:
                decoded.reasons[slot] = reason_of(error)
            else:
                how = [(box[i].tolist(), d.flip[i], d.shift[i]) for box, d in zip(boxes, draws, strict=True)]
                self._put(decoded, slot, image, how, recorded=recorded, backwards=backwards[i])

    def _put(
        self, decoded: Decoded, slot: int, image: np.ndarray, how: list, *, recorded: dict[str, str], backwards: bool
    ) -> None:
        for view, (box, flip, (down, across)) in zip(self.views, how, strict=True):
            top, left, height, width = box
            crop = image[top : top + height, left : left + width]
            crop = pixels.fast_resize(crop, view.master or view.size, view.interpolation)
            crop = pixels.mirrored(crop, backwards=backwards) if flip else crop
            decoded.views[view.name][slot] = crop[down : down + view.size[0], across : across + view.size[1]]
            if view.name in recorded:
                decoded.views[recorded[view.name]][slot] = [*box, flip]
        decoded.valid[slot] = True


def reason_of(error: Exception) -> str:
    """One line that says what is wrong with a file."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _read(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
