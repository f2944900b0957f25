"""A linear classifier on frozen features that lie in memory: scikit-learn's logistic regression."""

import warnings

import numpy as np

ITERATIONS = 200


def logistic_predict(train_features, train_labels, test_features, *, C: float = 1.0) -> np.ndarray:
    """(n,) classes of test features (n, D), by logistic regression on the train features.

    Features are standardised by the train split; L2 with strength 1 / C, L-BFGS, at most ITERATIONS iterations (the
    protocol is our choice: a quick look, without augmentation, not the papers' 90 epochs of SGD).
    """
    # Here: it takes longer to import than all else that training needs, and only `eval.linear` needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = train_features.mean(axis=0), train_features.std(axis=0)
    std = np.where(std > 1e-8, std, 1.0)
    classifier = LogisticRegression(C=C, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((train_features - mean) / std, train_labels)
    return classifier.predict((test_features - mean) / std)


def logistic_accuracy(train_features, train_labels, test_features, test_labels) -> float:
    """The share (0..1) of test images that `logistic_predict` classifies rightly."""
    return float(np.mean(logistic_predict(train_features, train_labels, test_features) == test_labels))
