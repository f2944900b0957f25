"""Weighted k-nearest-neighbour classification of frozen features."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from maskcl_jax.errors import UserError

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
    train, labels = normalized(train_features), np.asarray(train_labels, np.int32)
    test = normalized(test_features)
    block, test_block = min(block, len(train)), min(test_block, len(test))
    # The train features pass the device once; the far fewer test features stay there.
    tests = [jnp.asarray(part) for part, _ in blocks(test, test_block)]
    k = min(k, len(train))
    best = [(jnp.full((test_block, k), -jnp.inf, jnp.float32), jnp.zeros((test_block, k), jnp.int32)) for _ in tests]
    for (part, count), (part_labels, _) in zip(blocks(train, block), blocks(labels, block), strict=True):
        part, part_labels = jnp.asarray(part), jnp.asarray(part_labels)
        best = [merge(b, t, part, part_labels, count) for b, t in zip(best, tests, strict=True)]
    votes = [np.asarray(vote(b, temperature, num_classes=num_classes)) for b in best]
    return np.concatenate(votes)[: len(test)]


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
        part = array[start : start + rows]
        yield np.concatenate([part, np.zeros((rows - len(part), *array.shape[1:]), array.dtype)]), len(part)


@jax.jit
def merge(best, test, train, labels, count):
    """The k best (similarity, label) so far, and those among `count` rows of one more block of train features."""
    with jax.default_matmul_precision("highest"):
        similarity = test @ train.T
    similarity = jnp.where(jnp.arange(len(train)) < count, similarity, -jnp.inf)
    similarities = jnp.concatenate([best[0], similarity], axis=1)
    labels = jnp.concatenate([best[1], jnp.broadcast_to(labels, similarity.shape)], axis=1)
    top, where = jax.lax.top_k(similarities, best[0].shape[1])
    return top, jnp.take_along_axis(labels, where, axis=1)


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


def collect_features(feature_fn, batches, put, *, keep: str = "labelled"):
    """(features (n, D) float32, labels (n,), index (n,)) of evaluation batches, the rows of all processes.

    batches: dicts of image, label, index and valid (B,) bool. put: host arrays -> global device arrays.
    feature_fn: device images -> (B, D). keep: `labelled`, or `valid` for images without a label too; the padding
    of a batch is never kept. Raises UserError where no batch comes.
    """
    rows = []
    for batch in batches:
        # The labels take the road of the images: on several processes, features come back in the mesh's order.
        placed = put({name: batch[name] for name in ("image", "label", "index", "valid")})
        features, label, index, kept = map(
            whole, (feature_fn(placed["image"]), placed["label"], placed["index"], placed["valid"])
        )
        if keep == "labelled":
            kept = kept & (label >= 0)
        rows.append((features[kept].astype(np.float32), label[kept], index[kept]))
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
