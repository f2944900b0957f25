"""A linear classifier on frozen features in memory: scikit-learn's logistic regression."""

import warnings

import numpy as np

ITERATIONS = 200  # of L-BFGS


def logistic_predict(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, *, C: float = 1.0
) -> np.ndarray:
    """Classifies features by logistic regression: standardized by the train split, L2, L-BFGS, at most ITERATIONS.

    The protocol is our choice: a quick look, without augmentation, not the papers' 90 epochs of SGD.

    Args:
        train_features: (m, D).
        train_labels: (m,) integers.
        test_features: (n, D).
        C: The inverse strength of L2.

    Returns:
        (n,) classes.
    """
    # Imported here: it takes longer than all else that training needs, and only `eval.linear` needs it there.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = train_features.mean(axis=0), train_features.std(axis=0)
    std = np.where(std > 1e-8, std, 1.0)
    classifier = LogisticRegression(C=C, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((train_features - mean) / std, train_labels)
    return classifier.predict((test_features - mean) / std)


def logistic_accuracy(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray
) -> float:
    """The fraction (0..1) of test images that `logistic_predict` classifies correctly."""
    return float(np.mean(logistic_predict(train_features, train_labels, test_features) == test_labels))
