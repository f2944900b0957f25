"""Weighted k-nearest-neighbor classification of frozen features."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from maskcl_jax.errors import UserError
from maskcl_jax.training import sharding

TRAIN_BLOCK = 16384  # no similarity matrix is larger than TRAIN_BLOCK x TEST_BLOCK
TEST_BLOCK = 1024


def knn_predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
    block: int = TRAIN_BLOCK,
    test_block: int = TEST_BLOCK,
) -> np.ndarray:
    """Classifies features by weighted k nearest neighbors under cosine similarity.

    A neighbor's vote weighs exp(similarity / temperature). Equal votes go to the lower class.

    Args:
        train_features: (m, D).
        train_labels: (m,) integers from 0 to num_classes - 1.
        test_features: (n, D).
        k: Neighbors that vote; larger than m means all m.
        temperature: Of the weights.
        num_classes: The number of classes.
        block: Training features compared at once; does not change the result.
        test_block: Test features compared at once; does not change the result.

    Returns:
        (n,) int32 classes.

    Raises:
        UserError: For k below 1, no training or test features, or a label out of range.

    Source: Wu et al. 2018, section 3.4; k 20 and temperature 0.07 as DINO reports.
    """
    check_inputs(train_labels, test_features, k=k, num_classes=num_classes)
    count = len(train_labels)
    neighbors = Neighbors(test_features, k=min(k, count), block=min(block, count), rows=test_block)
    neighbors.add(train_features, train_labels)
    return neighbors.classify(temperature=temperature, num_classes=num_classes)


class Neighbors:
    """The k most similar training features of every test feature, updated block by block.

    Every device holds all test features, and a part of one block of training features at a time, so memory does not
    grow with the number of the latter. All processes pass the same arrays.

    Args:
        test_features: (n, D).
        k: Neighbors to keep.
        block: Training features compared at once.
        rows: Test features compared at once.
    """

    def __init__(self, test_features: np.ndarray, *, k: int, block: int = TRAIN_BLOCK, rows: int = TEST_BLOCK):
        self.n, self.mesh = len(test_features), sharding.create_mesh()
        replicated = sharding.replicated(self.mesh)
        rows = min(rows, self.n)
        self.tests = [jax.device_put(normalized(part), replicated) for part, _ in padded_blocks(test_features, rows)]
        empty = np.full((rows, k), -np.inf, np.float32), np.zeros((rows, k), np.int32)
        self.best = [jax.device_put(empty, replicated) for _ in self.tests]
        self.devices = self.mesh.size
        self.block = -(-block // self.devices) * self.devices
        self.merge = merge_neighbors_on_one_device
        if self.devices > 1:
            self.merge = jax.jit(merge_neighbors, out_shardings=(replicated, replicated))

    def add(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Compares with more training features (m, D) of labels (m,); m may be any number."""
        labels = np.asarray(labels, np.int32)
        for (part, count), (part_labels, _) in zip(
            padded_blocks(features, self.block), padded_blocks(labels, self.block), strict=True
        ):
            placed, placed_labels = self.split(normalized(part)), self.split(part_labels)
            jax.block_until_ready(self.best)  # blocks that wait for the devices would pile up in memory
            self.best = [
                self.merge(best, test, placed, placed_labels, count)
                for best, test in zip(self.best, self.tests, strict=True)
            ]

    def split(self, rows: np.ndarray) -> jax.Array:
        """(block, ...) -> (devices, block / devices, ...), one part on each device."""
        rows = rows.reshape(self.devices, -1, *rows.shape[1:])
        return jax.make_array_from_callback(rows.shape, sharding.batch_sharding(self.mesh), lambda where: rows[where])

    def classify(self, *, temperature: float, num_classes: int, k: int | None = None) -> np.ndarray:
        """(n,) int32 classes, voted by the k nearest (default: all that were kept)."""
        nearest = [(similarity[:, :k], labels[:, :k]) for similarity, labels in self.best]
        votes = [np.asarray(weighted_vote(pair, temperature, num_classes=num_classes)) for pair in nearest]
        return np.concatenate(votes)[: self.n]


def check_inputs(train_labels: np.ndarray, test_features: np.ndarray, *, k: int, num_classes: int) -> None:
    """Raises UserError for features and labels that k-NN cannot use."""
    if k < 1:
        raise UserError(f"k-NN: k={k} is not positive: use 1 or more, for instance 20")
    if not len(train_labels) or not len(test_features):
        raise UserError(
            f"k-NN: {len(train_labels)} train and {len(test_features)} test images have a label: it needs both"
        )
    if np.min(train_labels) < 0 or np.max(train_labels) >= num_classes:
        raise UserError(
            f"k-NN: labels from {np.min(train_labels)} to {np.max(train_labels)} do not fit "
            f"num_classes={num_classes}: they must lie in 0..{num_classes - 1}"
        )


def padded_blocks(array: np.ndarray, rows: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (`rows` rows, how many are not padding); zeros pad the last block: one shape, one compilation."""
    for start in range(0, len(array), rows):
        part = np.asarray(array[start : start + rows])
        yield np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), part.dtype)]), len(part)


def merge_neighbors(
    best: tuple[jax.Array, jax.Array], test: jax.Array, train: jax.Array, labels: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Merges the nearest neighbors so far with those of one more block.

    Each of P devices first finds the k best of its own rows: these are exchanged, not the similarities.

    Args:
        best: (similarity (t, k) float32, label (t, k) int32).
        test: (t, D), rows of unit length.
        train: (P, R, D), likewise.
        labels: (P, R).
        count: Rows of the block that are not padding.

    Returns:
        `best`, updated.
    """
    with jax.default_matmul_precision("highest"):
        similarity = jnp.einsum("td,prd->tpr", test, train)
    position = jnp.arange(labels.size).reshape(labels.shape)
    similarity = jnp.where(position < count, similarity, -jnp.inf)
    k = best[0].shape[1]
    top, where = jax.lax.top_k(similarity, min(k, labels.shape[1]))
    top_labels = jnp.take_along_axis(jnp.broadcast_to(labels, similarity.shape), where, axis=2)
    similarities = jnp.concatenate([best[0], top.reshape(len(test), -1)], axis=1)
    labels = jnp.concatenate([best[1], top_labels.reshape(len(test), -1)], axis=1)
    top, where = jax.lax.top_k(similarities, k)
    return top, jnp.take_along_axis(labels, where, axis=1)


merge_neighbors_on_one_device = jax.jit(merge_neighbors)


@functools.partial(jax.jit, static_argnames="num_classes")
def weighted_vote(best: tuple[jax.Array, jax.Array], temperature: float, *, num_classes: int) -> jax.Array:
    """(t,) int32: the class of largest weight among the neighbors `best`.

    The largest similarity is subtracted first: the order stays and exp stays finite.
    """
    similarity, labels = best
    weights = jnp.exp((similarity - similarity[:, :1]) / temperature)
    row = jnp.arange(len(labels))[:, None]
    votes = jnp.zeros((len(labels), num_classes)).at[row, labels].add(weights)
    return votes.argmax(axis=1).astype(jnp.int32)


def normalized(features: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32; a zero row stays zero."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def feature_batches(
    feature_fn: Callable[[jax.Array], jax.Array],
    batches: Iterable[Mapping[str, np.ndarray]],
    put: Callable[[dict[str, np.ndarray]], Mapping[str, jax.Array]],
    *,
    keep: str = "labeled",
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Computes features of evaluation batches.

    Args:
        feature_fn: Images (B, H, W, C) on the devices -> (B, D).
        batches: {image, label, index, valid (B,) bool} of this process.
        put: Batch of this process -> global arrays on the devices.
        keep: "labeled", or "valid" for images without a label too; the padding of a batch is never kept.

    Yields:
        (features (n, D) float32, labels (n,), index (n,)) of each batch, the rows of all processes.
    """
    for batch in batches:
        # The labels go with the images: on several processes, features come back in the mesh's order.
        placed = put({name: batch[name] for name in ("image", "label", "index", "valid")})
        features, label, index, kept = map(
            to_host, (feature_fn(placed["image"]), placed["label"], placed["index"], placed["valid"])
        )
        if keep == "labeled":
            kept = kept & (label >= 0)
        yield features[kept].astype(np.float32), label[kept], index[kept]


def collect_features(
    feature_fn: Callable[[jax.Array], jax.Array],
    batches: Iterable[Mapping[str, np.ndarray]],
    put: Callable[[dict[str, np.ndarray]], Mapping[str, jax.Array]],
    *,
    keep: str = "labeled",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rows of `feature_batches`. Raises UserError where there is no batch."""
    rows = list(feature_batches(feature_fn, batches, put, keep=keep))
    if not rows:
        raise UserError("evaluation: the split has no image")
    features, labels, index = (np.concatenate(column) for column in zip(*rows, strict=True))
    return features, labels, index


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host, with the rows on other processes' devices; a collective if there are any."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def knn_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
) -> dict[str, float]:
    """k-NN of features and labels as `collect_features` returns them. Every labeled image counts once.

    Args:
        train: (m, D).
        train_labels: (m,).
        test: (n, D).
        test_labels: (n,).
        k: See `knn_predict`.
        temperature: See `knn_predict`.
        num_classes: The number of classes.

    Returns:
        {accuracy (0..1), low, high (Wilson 95 %), n_train, n_test, k, temperature}; k is how many voted, at most m.

    Raises:
        UserError: Where a split has no labeled image.
    """
    predicted = knn_predict(train, train_labels, test, k=k, temperature=temperature, num_classes=num_classes)
    correct = int((predicted == test_labels).sum())
    low, high = wilson(correct, len(test))
    return {
        "accuracy": correct / len(test),
        "low": low,
        "high": high,
        "n_train": len(train),
        "n_test": len(test),
        "k": min(k, len(train)),
        "temperature": temperature,
    }


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval (low, high) of the proportion correct / n; n is at least 1."""
    p = correct / n
    center, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (center - spread) / (1 + z * z / n), (center + spread) / (1 + z * z / n)
