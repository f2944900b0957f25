"""Weighted k-nearest-neighbour classification of frozen features."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from maskcl_jax.errors import UserError
from maskcl_jax.training import sharding

TRAIN_BLOCK = 16384  # train features compared at once: no similarity matrix is larger than TRAIN_BLOCK x TEST_BLOCK
TEST_BLOCK = 1024


def knn_predict(
    train_features,
    train_labels,
    test_features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
    block: int = TRAIN_BLOCK,
    test_block: int = TEST_BLOCK,
) -> np.ndarray:
    """(n,) int32 classes of `test_features` (n, D), voted by the k most similar of `train_features` (M, D).

    Cosine similarity; a neighbour's vote weighs exp(similarity / temperature) (Wu et al. 2018, section 3.4; k 20
    and temperature 0.07 as DINO reports). k larger than M means all M. Equal votes go to the lower class. The
    sizes of the blocks do not change the result. Raises UserError for k < 1, no train or test features, or a
    train label outside 0..num_classes-1.
    """
    check(train_labels, test_features, k=k, num_classes=num_classes)
    found = Neighbours(test_features, k=min(k, len(train_labels)), block=min(block, len(train_labels)), rows=test_block)
    found.add(train_features, train_labels)
    return found.vote(temperature=temperature, num_classes=num_classes)


class Neighbours:
    """The k most similar train features of every test feature, found while the train features pass by.

    The test features (n, D) stay on the devices, all of them on each; of the train features one block at a time does,
    split over the devices, so memory does not grow with their number. All processes pass the same arrays.
    """

    def __init__(self, test_features, *, k: int, block: int = TRAIN_BLOCK, rows: int = TEST_BLOCK):
        self.n, self.mesh = len(test_features), sharding.create_mesh()
        whole_on_each = sharding.replicated(self.mesh)
        rows = min(rows, self.n)
        self.tests = [jax.device_put(normalized(part), whole_on_each) for part, _ in blocks(test_features, rows)]
        first = np.full((rows, k), -np.inf, np.float32), np.zeros((rows, k), np.int32)
        self.best = [jax.device_put(first, whole_on_each) for _ in self.tests]
        self.devices = self.mesh.size
        self.block = -(-block // self.devices) * self.devices
        self.merge = jax.jit(merge, out_shardings=(whole_on_each, whole_on_each)) if self.devices > 1 else merge_alone

    def add(self, features, labels) -> None:
        """More train features (m, D), any number, and their labels (m,)."""
        labels = np.asarray(labels, np.int32)
        for (part, count), (part_labels, _) in zip(
            blocks(features, self.block), blocks(labels, self.block), strict=True
        ):
            placed, placed_labels = map(self.split, (normalized(part), part_labels))
            jax.block_until_ready(self.best)  # blocks that wait for the devices would pile up in memory
            self.best = [
                self.merge(best, test, placed, placed_labels, count)
                for best, test in zip(self.best, self.tests, strict=True)
            ]

    def split(self, rows: np.ndarray):
        """(block, ...) -> (devices, block / devices, ...), a share on each device."""
        rows = rows.reshape(self.devices, -1, *rows.shape[1:])
        return jax.make_array_from_callback(rows.shape, sharding.batch_sharding(self.mesh), lambda where: rows[where])

    def vote(self, *, temperature: float, num_classes: int, k: int | None = None) -> np.ndarray:
        """(n,) int32 classes, voted by the k nearest (default: all that were kept)."""
        nearest = [(similarity[:, :k], labels[:, :k]) for similarity, labels in self.best]
        votes = [np.asarray(vote(pair, temperature, num_classes=num_classes)) for pair in nearest]
        return np.concatenate(votes)[: self.n]


def check(train_labels, test_features, *, k: int, num_classes: int) -> None:
    """Raises UserError for what k-NN cannot work on."""
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


def blocks(array: np.ndarray, rows: int):
    """(rows of `array`, how many are real) in turn; the last is filled up with zeros: one shape, one compilation."""
    for start in range(0, len(array), rows):
        part = np.asarray(array[start : start + rows])
        yield np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), part.dtype)]), len(part)


def merge(best, test, train, labels, count):
    """The k best (similarity, label) so far, and those among the first `count` rows of one more block.

    train: (P, R, D), labels: (P, R): a block as it lies on P devices. Each first finds the k best of its own rows:
    these travel, not the similarities.
    """
    with jax.default_matmul_precision("highest"):
        similarity = jnp.einsum("td,prd->tpr", test, train)
    place = jnp.arange(labels.size).reshape(labels.shape)
    similarity = jnp.where(place < count, similarity, -jnp.inf)
    k = best[0].shape[1]
    top, where = jax.lax.top_k(similarity, min(k, labels.shape[1]))
    found = jnp.take_along_axis(jnp.broadcast_to(labels, similarity.shape), where, axis=2)
    similarities = jnp.concatenate([best[0], top.reshape(len(test), -1)], axis=1)
    labels = jnp.concatenate([best[1], found.reshape(len(test), -1)], axis=1)
    top, where = jax.lax.top_k(similarities, k)
    return top, jnp.take_along_axis(labels, where, axis=1)


merge_alone = jax.jit(merge)


@functools.partial(jax.jit, static_argnames="num_classes")
def vote(best, temperature, *, num_classes):
    """The class of most weight. The largest similarity is taken off first: the order stays and exp stays finite."""
    similarity, labels = best
    weights = jnp.exp((similarity - similarity[:, :1]) / temperature)
    row = jnp.arange(len(labels))[:, None]
    votes = jnp.zeros((len(labels), num_classes)).at[row, labels].add(weights)
    return votes.argmax(axis=1).astype(jnp.int32)


def normalized(features) -> np.ndarray:
    """Rows of unit length, float32; a zero row stays zero."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def feature_batches(feature_fn, batches, put, *, keep: str = "labelled"):
    """(features (n, D) float32, labels (n,), index (n,)) of each evaluation batch, the rows of all processes.

    batches: dicts of image, label, index and valid (B,) bool. put: host arrays -> global device arrays.
    feature_fn: device images -> (B, D). keep: `labelled`, or `valid` for images without a label too; the padding
    of a batch is never kept.
    """
    for batch in batches:
        # The labels take the road of the images: on several processes, features come back in the mesh's order.
        placed = put({name: batch[name] for name in ("image", "label", "index", "valid")})
        features, label, index, kept = map(
            whole, (feature_fn(placed["image"]), placed["label"], placed["index"], placed["valid"])
        )
        if keep == "labelled":
            kept = kept & (label >= 0)
        yield features[kept].astype(np.float32), label[kept], index[kept]


def collect_features(feature_fn, batches, put, *, keep: str = "labelled"):
    """The rows of `feature_batches` in one piece. Raises UserError where no batch comes."""
    rows = list(feature_batches(feature_fn, batches, put, keep=keep))
    if not rows:
        raise UserError("evaluation: the split holds no image")
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


def whole(array) -> np.ndarray:
    """An array on the host with the rows that lie on other processes' devices too. A collective there."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def knn_accuracy(
    train, train_labels, test, test_labels, *, k: int = 20, temperature: float = 0.07, num_classes: int
) -> dict[str, float]:
    """k-NN of features and labels as `collect_features` gives them.

    Returns {accuracy (0..1), low, high (Wilson 95 %), n_train, n_test, k, temperature}.

    Every labelled image counts once. k is the number of neighbours that voted: n_train at most. Raises UserError
    where a split has no labelled image.
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
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
