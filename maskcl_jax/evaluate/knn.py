"""Weighted k-nearest-neighbour classification of frozen features."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

TRAIN_BLOCK = 16384  # train features compared at once: the similarity matrix never exceeds TRAIN_BLOCK x TEST_BLOCK
TEST_BLOCK = 1024


def knn_predict(train_features, train_labels, test_features, *, k: int, temperature: float, num_classes: int):
    """(n,) int32 classes of `test_features` (n, D), voted by the k most similar of `train_features` (M, D).

    Cosine similarity; a neighbour's vote weighs exp(similarity / temperature) (Wu et al. 2018, section 3.4; k 20
    and temperature 0.07 as DINO reports). k larger than M means all M. Equal votes go to the lower class.
    """
    train, test = normalized(train_features), normalized(test_features)
    labels = np.asarray(train_labels, np.int32)
    k = min(k, len(train))
    predictions = []
    for start in range(0, len(test), TEST_BLOCK):
        block = padded(test[start : start + TEST_BLOCK], min(TEST_BLOCK, len(test)))
        classes = predict_block(train, labels, block, k=k, temperature=temperature, num_classes=num_classes)
        predictions.append(classes[: len(test) - start])
    return np.concatenate(predictions)


def predict_block(train, labels, test, *, k, temperature, num_classes):
    """The classes of one block of test features, running over the train features in blocks."""
    size = min(TRAIN_BLOCK, len(train))
    best = jnp.full((len(test), k), -jnp.inf), jnp.zeros((len(test), k), jnp.int32)
    for start in range(0, len(train), size):
        part = train[start : start + size]
        best = merge(best, test, padded(part, size), padded(labels[start : start + size], size), len(part))
    return np.asarray(vote(best, temperature, num_classes=num_classes))


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
    votes = jnp.einsum("nk,nkc->nc", weights, jax.nn.one_hot(labels, num_classes), precision="highest")
    return votes.argmax(axis=1).astype(jnp.int32)


def normalized(features) -> np.ndarray:
    """Rows of unit length, float32; a zero row stays zero."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    """Zero rows appended up to `rows`, so that every block has one shape and one compilation."""
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def collect_features(feature_fn, batches, put):
    """(features (n, D) float32, labels (n,), index (n,)) of the valid, labelled images of evaluation batches.

    feature_fn: device images -> (B, D). put: host arrays -> device arrays.
    """
    rows = []
    for batch in batches:
        features = np.asarray(feature_fn(put({"image": batch["image"]})["image"]), np.float32)
        keep = batch["valid"] & (batch["label"] >= 0)
        rows.append((features[keep], batch["label"][keep], batch["index"][keep]))
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


def knn_accuracy(feature_fn, train_batches, test_batches, put, *, k: int, temperature: float, num_classes: int):
    """k-NN over whole splits: {accuracy, low, high (Wilson 95 %), n_train, n_test, k, temperature}."""
    train, train_labels, _ = collect_features(feature_fn, train_batches, put)
    test, test_labels, _ = collect_features(feature_fn, test_batches, put)
    predicted = knn_predict(train, train_labels, test, k=k, temperature=temperature, num_classes=num_classes)
    correct = int((predicted == test_labels).sum())
    low, high = wilson(correct, len(test))
    return {
        "accuracy": correct / len(test),
        "low": low,
        "high": high,
        "n_train": len(train),
        "n_test": len(test),
        "k": k,
        "temperature": temperature,
    }


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    p = correct / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
