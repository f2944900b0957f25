"""Recognizes measurements that measure nothing: a single class, no labeled image, features that are all equal.

Each function returns the reason in words, "" where there is none: an evaluation stops with it, a training run only says
it and goes on.
"""

import numpy as np

RELATIVE_SPREAD = 1e-6  # of the largest feature; float32 rounding alone spreads equal features about a tenth of it


def labels_problem(labels: np.ndarray, split: str) -> str:
    """Why images cannot be classified.

    Args:
        labels: (N,) integer classes of a split, -1 for images without a label.
        split: The name of the split, for the text.

    Returns:
        A reason that names the split and what it holds; "" where at least two classes are labeled.
    """
    if not len(labels):
        return f"the {split} split has no image"
    classes = np.unique(labels[labels >= 0])
    if not len(classes):
        return f"none of the {len(labels)} {split} images has a label"
    if len(classes) == 1:
        count = int((labels >= 0).sum())
        return f"all {count} labeled {split} images are of one class (number {classes[0]}): at least two are needed"
    return ""


def features_problem(features: np.ndarray, split: str, count: int | None = None) -> str:
    """Why features cannot tell images apart.

    Args:
        features: (N, ...) float32 features of different images, or their extremes (2, ...).
        split: The name of the split, for the text.
        count: The number of images, where it is not N.

    Returns:
        A reason; "" where the features are finite and differ (a single image is not judged).
    """
    if not len(features):
        return f"no {split} image has a feature"
    count, low, high = count or len(features), features.min(axis=0), features.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return f"features of {split} images are not finite: the run has diverged"
    if count > 1 and (high - low).max() <= RELATIVE_SPREAD * max(np.abs(low).max(), np.abs(high).max()):
        return f"the features of all {count} {split} images are equal: a collapsed encoder, or equal images"
    return ""


def outputs_problem(finite: bool | np.bool_) -> str:
    """Why a classifier or segmenter predicts nothing; "" where its outputs on all images are finite."""
    return "" if finite else "its outputs are not finite: it has diverged; lower optimizer.base_lr"


def predictions_problem(counts: np.ndarray, what: str) -> str:
    """What a figure is worth where all predictions are alike.

    Args:
        counts: (C,) how often each class is predicted.
        what: Of what, for the text: "test images".

    Returns:
        A line; "" where more than one class is predicted, or only one image is there.
    """
    predicted = np.flatnonzero(counts)
    if len(predicted) != 1 or counts.sum() < 2:
        return ""
    return f"all {counts.sum()} {what} are predicted as class number {predicted[0]}: the figure is only its frequency"


def neighbors_problem(k: int, n_train: int) -> str:
    """Why `k` neighbors cannot be asked of `n_train` labeled training images; "" where they can."""
    return f"k={k} is larger than the {n_train} labeled training images" if k > n_train else ""


def unlabeled(labels: np.ndarray) -> float:
    """The fraction (0..1) of images without a label, which no protocol counts."""
    return float((labels < 0).mean()) if len(labels) else 0.0
