"""The protocols that look at each image once: k-NN, and logistic regression on all labels or few."""

from typing import Any

import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import checks, knn, results
from maskcl_jax.evaluate.logistic import logistic_predict
from maskcl_jax.evaluate.session import Session


def run_knn(session: Session) -> dict[str, Any]:
    """k-NN for every k, on the same neighbors. The training features are never held together in memory.

    Returns:
        {"entries": [one for each k]}, see `results.record`.

    Raises:
        UserError: For a k larger than the train split, and where nothing is measured.
    """
    s, source = session.settings, session.source
    if problem := checks.neighbors_problem(max(s.k), source.num_examples("train")):
        raise UserError(f"--protocol=knn: {problem}: set k, for instance --config.k=1,5")
    test, labels, index = session.features("test")
    neighbors = knn.Neighbors(test, k=max(s.k), block=min(knn.TRAIN_BLOCK, source.num_examples("train")))
    seen, extremes, waiting = [], [], []
    for features, train_labels, _ in session.feature_batches("train"):
        seen.append(train_labels)
        extremes += [features.min(axis=0), features.max(axis=0)] if len(features) else []
        waiting.append((features, train_labels))
        if sum(len(part) for _, part in waiting) >= neighbors.block:
            waiting = add_whole_blocks(neighbors, waiting)
    train_labels = np.concatenate(seen) if seen else np.zeros(0, np.int32)
    session.refuse(
        checks.labels_problem(train_labels, "train")
        or checks.neighbors_problem(max(s.k), len(train_labels))
        or checks.features_problem(np.stack(extremes), "train", len(train_labels))
    )
    neighbors.add(*concatenate_rows(waiting))
    entries = []
    for k in s.k:
        predicted = neighbors.classify(temperature=s.temperature, num_classes=source.num_classes, k=k)
        session.warn(checks.predictions_problem(np.bincount(predicted), f"test images (k={k})"))
        entry = results.accuracy_of(predicted == labels, index)
        entries.append(entry | {"k": k, "temperature": s.temperature, "n_train": len(train_labels)})
    return {"entries": entries}


def add_whole_blocks(neighbors: knn.Neighbors, waiting: list[tuple]) -> list[tuple]:
    """Adds as many whole blocks as are waiting; returns what is left of them."""
    features, labels = concatenate_rows(waiting)
    count = len(labels) // neighbors.block * neighbors.block
    neighbors.add(features[:count], labels[:count])
    return [(features[count:], labels[count:])]


def concatenate_rows(parts: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """(features, labels) of all parts."""
    features, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return features, labels


def run_logistic(session: Session) -> dict[str, Any]:
    """scikit-learn's logistic regression on the frozen features of the labeled images.

    Returns:
        {"entries": [one]}, see `results.record`.

    Raises:
        UserError: Where nothing is measured.
    """
    s = session.settings
    train, labels, _ = session.features("train")
    test, test_labels, index = session.features("test")
    predicted = logistic_predict(train, labels, test, C=s.C)
    session.warn(checks.predictions_problem(np.bincount(predicted), "test images"))
    entry = results.accuracy_of(predicted == test_labels, index)
    return {"entries": [entry | {"C": s.C, "n_train": len(labels)}]}
