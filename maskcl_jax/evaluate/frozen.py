"""The protocols that look at each image once: k-NN, and logistic regression on all labels or few."""

import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import knn, results
from maskcl_jax.evaluate.logistic import logistic_predict


def run_knn(session) -> dict:
    """Every k on the same neighbours. The train features pass by: they are never held together."""
    s, source = session.settings, session.source
    if not s.k or min(s.k) < 1:
        raise UserError(f"k={s.k} is out of range: use 1 or more, for instance 20")
    if s.temperature <= 0:
        raise UserError(f"temperature={s.temperature} is out of range: it must be greater than 0")
    test, labels, _ = session.features("test")
    if not len(labels):
        raise UserError("k-NN: no image of the test split has a label")
    found = knn.Neighbours(test, k=max(s.k), block=min(knn.TRAIN_BLOCK, source.num_examples("train")))
    seen, waiting = 0, []
    for features, train_labels, _ in session.passing_features("train"):
        seen += len(train_labels)
        waiting.append((features, train_labels))
        if sum(len(part) for _, part in waiting) >= found.block:
            waiting = add_whole_blocks(found, waiting)
    if not seen:
        raise UserError("k-NN: no image of the train split has a label")
    found.add(*joined(waiting))
    entries = []
    for k in s.k:
        predicted = found.vote(temperature=s.temperature, num_classes=source.num_classes, k=k)
        entry = results.accuracy(int((predicted == labels).sum()), len(labels))
        entries.append(entry | {"k": min(k, seen), "temperature": s.temperature, "n_train": seen})
    return {"entries": entries}


def add_whole_blocks(found: knn.Neighbours, waiting: list) -> list:
    """Hands over as many whole blocks as wait; what is left of them."""
    features, labels = joined(waiting)
    whole = len(labels) // found.block * found.block
    found.add(features[:whole], labels[:whole])
    return [(features[whole:], labels[whole:])]


def joined(parts: list) -> tuple[np.ndarray, np.ndarray]:
    """(features, labels) of all parts."""
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def run_logistic(session) -> dict:
    """scikit-learn's logistic regression on the frozen features of the labelled images."""
    s = session.settings
    if s.C <= 0:
        raise UserError(f"C={s.C} is out of range: it must be greater than 0")
    train, labels, _ = session.features("train")
    test, test_labels, _ = session.features("test")
    if len(np.unique(labels)) < 2:
        raise UserError(f"labels={s.labels!r} hold one class alone: a classifier needs two")
    predicted = logistic_predict(train, labels, test, C=s.C)
    entry = results.accuracy(int((predicted == test_labels).sum()), len(test_labels))
    return {"entries": [entry | {"C": s.C, "n_train": len(labels)}]}
