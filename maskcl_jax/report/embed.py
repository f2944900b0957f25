"""Features of some images of a run's data: their nearest neighbors, and how well k-NN does with them."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import Source
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import checks, features, knn
from maskcl_jax.evaluate import encoder as encoder_lib
from maskcl_jax.evaluate.session import Session
from maskcl_jax.training.visualize import to_rgb

BATCH = 48
NEIGHBORS = 7
PIXELS = 2**26  # values: raw pixels of more are not compared


class Images(NamedTuple):
    """Images of a split with their features.

    Attributes:
        pixels: (n, H, W, C) uint8, as the encoder gets them.
        features: (n, D) float32.
        labels: (n,); -1 where there is none.
        where: (n,) numbers in the split.
    """

    pixels: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    where: np.ndarray

    def shown(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8 of image i, as a figure shows it."""
        return to_rgb(self.pixels[i : i + 1] / np.float32(255))[0]


def images_of(
    session: Session, compute: Callable[[jax.Array], jax.Array], split: str, limit: int, seconds: float = 0.0
) -> Images:
    """Embeds at most `limit` images of a split, a fixed choice; about as many as go in so many seconds, if given."""
    if seconds:
        list(batches_of(session, compute, split, BATCH))  # compiles
        begin = time.monotonic()
        count = sum(len(columns[0]) for columns in batches_of(session, compute, split, 2 * BATCH))
        limit = min(limit, int(count * seconds / (time.monotonic() - begin)) // BATCH * BATCH + BATCH)
    columns = list(batches_of(session, compute, split, limit))
    if not sum(len(column[0]) for column in columns):
        raise UserError(f"the {split} split of {session.source.description} has no image that can be read")
    return Images(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def batches_of(
    session: Session, compute: Callable[[jax.Array], jax.Array], split: str, limit: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the columns of `Images`, batch by batch."""
    size = -(-BATCH // session.mesh.size) * session.mesh.size
    data = session.settings.data
    with pipeline.eval_batches(session.source, split, data_config=data, batch_size=size, limit=limit) as batches:
        for batch in batches:
            values = knn.to_host(compute(session.put({"image": batch["image"]})["image"])).astype(np.float32)
            valid = batch["valid"]
            yield batch["image"][valid], values[valid], batch["label"][valid], batch["index"][valid]


def embedded(session: Session, images: np.ndarray, compute: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """Features (n, D) of images (n, H, W, C), batch by batch in one shape."""
    size = -(-BATCH // session.mesh.size) * session.mesh.size
    parts = [
        knn.to_host(compute(session.put({"image": part})["image"]))[:count]
        for part, count in knn.padded_blocks(images, size)
    ]
    return np.concatenate(parts)


def neighbors(held_out: Images, pool: Images, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices, cosines) of the most similar images of the pool, (queries, k); an image is not its own neighbor."""
    cosines = knn.normalized(held_out.features[queries]) @ knn.normalized(pool.features).T
    if held_out is pool:
        cosines[np.arange(len(queries)), queries] = -np.inf
    count = min(NEIGHBORS, len(pool.features) - (held_out is pool))
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return nearest, np.take_along_axis(cosines, nearest, axis=1)


def spread_over_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` images, of as many classes as there are: the first of each of some evenly spaced classes."""
    classes = np.unique(labels)
    if len(classes) < count:
        return features.spread(len(labels), count)
    chosen = classes[features.spread(len(classes), count)]
    return np.array([np.flatnonzero(labels == label)[0] for label in chosen])


def untrained(
    session: Session, held_out: Images, pool: Images, compute: Callable[[Any, jax.Array], jax.Array]
) -> tuple[Images, Images]:
    """(held_out, pool) with the features of the encoder's initial values; one and the same where they are that."""
    random = encoder_lib.open_encoder(session.run, network="random", image_size=session.settings.data.image_size)
    again = functools.partial(compute, random.variables)
    first = held_out._replace(features=embedded(session, held_out.pixels, again))
    return first, first if pool is held_out else pool._replace(features=embedded(session, pool.pixels, again))


def comparison_problem(source: Source, held_out: Images, pool: Images) -> str:
    """Why k-NN of these images cannot be measured; "" where it can."""
    if source.num_classes == 0:
        return "the data have no labels"
    if held_out is pool:
        return "the data have no held-out images"
    return checks.labels_problem(pool.labels, "train") or checks.labels_problem(held_out.labels, "test")


def accuracies(
    session: Session, held_out: Images, pool: Images, *, initial: tuple[Images, Images] | None, left_out: list[str]
) -> dict[str, dict[str, float]]:
    """k-NN of the encoder, of the untrained one where `initial` is given, and of raw pixels, all on the same images."""
    found = {"this encoder": accuracy(session, held_out, pool, held_out.features, pool.features)}
    if initial:
        found["untrained"] = accuracy(session, held_out, pool, *(images.features for images in initial))
    if pool.pixels.size > PIXELS:
        left_out.append("k-NN of raw pixels: they are too many")
    else:
        preprocess = jax.jit(lambda x: session.encoder.features(session.encoder.variables, x, "pixels"))
        values = [embedded(session, images.pixels, preprocess) for images in (held_out, pool)]
        found["raw pixels"] = accuracy(session, held_out, pool, *values)
    return found


def accuracy(session: Session, held_out: Images, pool: Images, test: np.ndarray, train: np.ndarray) -> dict[str, float]:
    """k-NN as the run measures it, with its interval."""
    e, mine, theirs = session.run.config.eval, held_out.labels >= 0, pool.labels >= 0
    return knn.knn_accuracy(
        train[theirs],
        pool.labels[theirs],
        test[mine],
        held_out.labels[mine],
        k=e.k,
        temperature=e.temperature,
        num_classes=session.source.num_classes,
    )
