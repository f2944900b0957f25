"""Means, spreads and paired differences of the figures of a study."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import stats

from maskcl_jax.evaluate.results import unpack_bits, unpack_counts

LEVEL = 0.95  # of the intervals


def summary(figures: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each entry and figure: mean and standard deviation over seeds; percent.

    Args:
        figures: Rows with entry, figure, seed and value.
        runs: Rows of trainings with entry, cpu_seconds and images.
    """
    rows = []
    for entry, figure in dict.fromkeys((row["entry"], row["figure"]) for row in figures):
        values = values_of(figures, entry, figure)
        row = {"entry": entry, "figure": figure, "seeds": sorted(values), "mean": mean(values.values())}
        rows.append(row | {"std": float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None})
    for entry in dict.fromkeys(row["entry"] for row in runs):
        own = [row for row in runs if row["entry"] == entry]
        for name in ("cpu_seconds", "images"):
            values = {row["seed"]: row[name] for row in own}
            rows.append({"entry": entry, "figure": name, "seeds": sorted(values), "mean": mean(values.values())})
    return rows


def values_of(figures: list[dict[str, Any]], entry: str, figure: str) -> dict[int, float]:
    """{seed: value in percent} of one entry and figure."""
    return {row["seed"]: row["value"] for row in figures if (row["entry"], row["figure"]) == (entry, figure)}


def mean(values: Iterable[float]) -> float:
    """The mean of some numbers."""
    return float(np.mean(list(values)))


def comparisons(figures: list[dict[str, Any]], pairs: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    """One row for each pair and each figure that both have, over the seeds that both have.

    Returns:
        Rows {entry, other, figure, seeds, difference: entry - other in percent points, over_seeds: its interval by
        Student's t of the seeds' differences, None for one seed; over_images: that of the mean over seeds, by the
        paired outcomes of the test images, None where outcomes were not kept}.
    """
    rows = []
    for entry, other in pairs:
        for figure in dict.fromkeys(row["figure"] for row in figures if row["entry"] == entry):
            ours, theirs = values_of(figures, entry, figure), values_of(figures, other, figure)
            if shared := sorted(ours.keys() & theirs.keys()):
                differences = [ours[seed] - theirs[seed] for seed in shared]
                row = {"entry": entry, "other": other, "figure": figure, "seeds": shared}
                row |= {"difference": mean(differences), "over_seeds": over_seeds(differences)}
                rows.append(row | {"over_images": over_images(figures, entry, other, figure, shared)})
    return rows


def over_seeds(differences: list[float]) -> list[float] | None:
    """The interval (low, high) of the mean difference by Student's t; None for one seed."""
    n = len(differences)
    if n < 2:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return [mean(differences) - half, mean(differences) + half]


def over_images(
    figures: list[dict[str, Any]], entry: str, other: str, figure: str, seeds: list[int]
) -> list[float] | None:
    """The interval (low, high) of the mean difference by the outcomes of each test image, in percent points."""
    paired = []
    for seed in seeds:
        outcomes = [outcomes_of(figures, name, figure, seed) for name in (entry, other)]
        if outcomes[0] is None or outcomes[1] is None or len(outcomes[0]) != len(outcomes[1]):
            return None
        paired.append(outcomes[0] - outcomes[1])
    each = 100 * np.mean(paired, axis=0)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * float(each.std(ddof=1)) / math.sqrt(len(each))
    return [float(each.mean()) - half, float(each.mean()) + half]


def outcomes_of(figures: list[dict[str, Any]], entry: str, figure: str, seed: int) -> np.ndarray | None:
    """(n_test,) float64, what each test image has in a figure, which is their mean; None where that was not kept."""
    for row in figures:
        if (row["entry"], row["figure"], row["seed"]) == (entry, figure, seed):
            if "correct" in row:
                return unpack_bits(row["correct"], row["n_test"]).astype(float)
            if "pixels" in row:
                return miou_by_image(unpack_counts(row["pixels"], row["n_test"]))
    return None


def miou_by_image(pixels: np.ndarray) -> np.ndarray:
    """What each image has in the mean IoU, so that two evaluations can be compared in pairs.

    Mean IoU is no mean over images. Its linearization is (the delta method): these values have it as their mean, and
    their standard deviation over sqrt(n) is its standard error over test images.

    Args:
        pixels: (n, 3, C) counts of pixels of each image: of each class those labeled so, predicted so, and both.

    Returns:
        (n,) float64 fractions.
    """
    labeled, predicted, both = np.moveaxis(pixels.astype(float), 1, 0)
    union = labeled + predicted - both
    total = union.sum(axis=0)
    both, union, total = both[:, total > 0], union[:, total > 0], total[total > 0]
    iou = both.sum(axis=0) / total
    return iou.mean() + len(pixels) * ((both - iou * union) / total).mean(axis=1)
