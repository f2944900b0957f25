"""Views of encoded images: read, decode and crop in parallel in tf.data, and put into batches again.

An image that cannot be decoded drops out of the stream of single images (`ignore_errors`), which costs the
good ones nothing. Every image carries its step and its slot, so the gap shows when the batch is put together.
"""

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from maskcl_jax.data import crops, pixels
from maskcl_jax.data.requests import Request
from maskcl_jax.data.tensorflow_host import tensorflow
from maskcl_jax.errors import UserError

IN_FLIGHT = 256  # requests that tf.data may hold in its buffers before the first one comes out: far fewer


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A request and what became of it: slots (k,) of the readable images, views {name: (k, H, W, C)}.

    Among the views the crops (k, 5) that boxes need, by `crops.recorded`.
    """

    request: Request
    slots: np.ndarray
    views: dict[str, np.ndarray]


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
    """One Decoded a request, in order, each with the images that could be read.

    batch: the most images a request has. threads: of tf.data, 0 lets it decide; without effect on the result.
    patience: requests in a row without one readable image before it raises UserError.
    """
    tf = tensorflow()
    feed = _Feed(requests, views, seed, patience)
    types = (tf.int64, tf.int64, tf.string, tf.float64, tf.bool, tf.int64)

    def pull(_):
        step, slot, payload, noise, flip, shift = tf.numpy_function(feed.next, [], types)
        for tensor in (step, slot, payload):
            tensor.set_shape([None])
        noise.set_shape([None, len(views), crops.ATTEMPTS, 4])
        flip.set_shape([None, len(views)])
        shift.set_shape([None, len(views), 2])
        return step, slot, payload, noise, flip, shift

    def show(step, slot, payload, noise, flip, shift):
        encoded = tf.io.read_file(payload) if is_path else payload
        return step, slot, _views(tf, encoded, views, noise, flip, shift, channels)

    dataset = tf.data.Dataset.counter().map(pull).take_while(lambda step, *_: tf.size(step) > 0).unbatch()
    dataset = dataset.map(show, num_parallel_calls=threads or tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.ignore_errors().batch(batch).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    yield from _by_request(dataset.with_options(options).as_numpy_iterator(), feed)
    if feed.error is not None:
        raise feed.error


class _Feed:
    """Hands requests to tf.data with their random numbers, and remembers those on the way.

    An exception must not reach tf.data: `ignore_errors` would swallow it and ask again for ever. It is kept,
    an empty batch ends the stream, and `decode` raises it.
    """

    def __init__(self, requests: Iterator[Request], views: list, seed: int, patience: int):
        self.pending: collections.deque[Request] = collections.deque()
        self.error: BaseException | None = None
        self._requests, self._views, self._seed = requests, views, seed
        self._limit = patience + IN_FLIGHT

    def next(self):
        try:
            while True:
                if len(self.pending) >= self._limit:
                    raise UserError(f"not one image of {len(self.pending)} batches can be decoded: check the data")
                request = next(self._requests)
                self.pending.append(request)
                if len(request.payloads):  # an empty part of an evaluation must not end the stream
                    return self._tensors(request)
        except StopIteration:
            pass
        except BaseException as error:
            self.error = error
        empty = np.zeros(0, np.int64)
        views = len(self._views)
        noise, shift = np.zeros((0, views, crops.ATTEMPTS, 4)), np.zeros((0, views, 2), np.int64)
        return empty, empty, np.zeros(0, object), noise, np.zeros((0, views), bool), shift

    def _tensors(self, request: Request):
        slots = request.slots
        draws = [crops.draw(v, seed=self._seed, epoch=slots.epoch, indices=slots.indices) for v in self._views]
        count = len(slots.indices)
        return (
            np.full(count, slots.step, np.int64),
            np.arange(count, dtype=np.int64),
            request.payloads,
            np.stack([d.noise for d in draws], axis=1),
            np.stack([d.flip for d in draws], axis=1),
            np.stack([d.shift for d in draws], axis=1),
        )


def _by_request(chunks: Iterator, feed: _Feed) -> Iterator[Decoded]:
    """Groups the stream of images, in order but with gaps, by the request they belong to."""
    pieces: list[tuple] = []

    def close() -> Decoded:
        nonlocal pieces
        request, pieces_of = feed.pending.popleft(), pieces
        pieces = []
        if not pieces_of:
            return Decoded(request, np.zeros(0, np.int64), {})
        slots = np.concatenate([slot for slot, _ in pieces_of])
        views = [np.concatenate(parts) for parts in zip(*(views.values() for _, views in pieces_of), strict=True)]
        return Decoded(request, slots, dict(zip(pieces_of[0][1], views, strict=True)))

    for steps, slots, views in chunks:
        for step in np.unique(steps):
            while feed.pending[0].slots.step != step:
                yield close()
            rows = steps == step
            pieces.append((slots[rows], {name: view[rows] for name, view in views.items()}))
            if sum(len(slot) for slot, _ in pieces) == len(feed.pending[0].payloads):
                yield close()
    while feed.pending:
        yield close()


def _views(tf, encoded, views, noise, flip, shift, channels) -> dict:
    """The views of one encoded image, in the graph. Plain JPEGs are cropped while they are decoded."""
    jpeg, png = _is_plain_jpeg(tf, encoded), _is_plain_png(tf, encoded, channels)

    def with_pillow():
        image = tf.numpy_function(lambda data: pixels.decode(data, channels), [encoded], tf.uint8)
        return tf.ensure_shape(image, [None, None, channels])

    def whole():
        return tf.cond(png, lambda: tf.image.decode_png(encoded, channels=channels), with_pillow)

    image = tf.cond(jpeg, lambda: tf.zeros([1, 1, channels], tf.uint8), whole)
    size = tf.cond(jpeg, lambda: tf.image.extract_jpeg_shape(encoded)[:2], lambda: tf.shape(image)[:2])
    out, recorded = {}, crops.recorded(views)
    numbers = [noise[i] for i in range(len(views))]
    boxes = crops.boxes(views, numbers, size[0], size[1], _numpy_in_graph())
    for i, (view, box) in enumerate(zip(views, boxes, strict=True)):
        crop = tf.cond(
            jpeg,
            # The accurate DCT is what Pillow and PyTorch decode with; TensorFlow's default is a rougher one.
            lambda box=box: tf.image.decode_and_crop_jpeg(
                encoded, box, channels=channels, dct_method="INTEGER_ACCURATE"
            ),
            lambda box=box: tf.slice(image, [box[0], box[1], 0], [box[2], box[3], channels]),
        )
        crop = tf.image.resize(crop, view.master or view.size, method=view.interpolation, antialias=True)
        crop = tf.cast(tf.clip_by_value(tf.round(crop), 0, 255), tf.uint8)
        crop = tf.cond(flip[i], lambda crop=crop: crop[:, ::-1], lambda crop=crop: crop)
        if view.master:
            crop = tf.slice(crop, [shift[i, 0], shift[i, 1], 0], [*view.size, channels])
        out[view.name] = tf.ensure_shape(crop, [*view.size, channels])
        if view.name in recorded:
            out[recorded[view.name]] = tf.concat([box, [tf.cast(flip[i], tf.int32)]], axis=0)
    return out


def _numpy_in_graph():
    import tensorflow.experimental.numpy as tnp

    return tnp


def _is_plain_jpeg(tf, encoded):
    """Whether TensorFlow decodes it as Pillow does: grey or YCbCr, and complete.

    A file that does not end with the end-of-image marker is left to Pillow, which decodes all of it and so
    sees whether it is truncated; a crop alone might not reach the missing part.
    """
    length = tf.strings.length(encoded)
    start = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    complete = start & (length > 4) & (tf.strings.substr(encoded, tf.maximum(length - 2, 0), 2) == b"\xff\xd9")
    components = tf.cond(complete, lambda: tf.image.extract_jpeg_shape(encoded)[2], lambda: 0)
    return (components == 1) | (components == 3)


def _is_plain_png(tf, encoded, channels):
    """8 bits, no alpha, no palette, no conversion to grey: where TensorFlow and Pillow agree."""
    header = tf.strings.substr(encoded, 0, tf.minimum(tf.strings.length(encoded), 26))
    kind = tf.strings.substr(header, tf.maximum(tf.strings.length(header) - 2, 0), 2)
    rgb = (kind == b"\x08\x02") & (channels == 3)
    return (tf.strings.substr(header, 0, 4) == b"\x89PNG") & ((kind == b"\x08\x00") | rgb)
