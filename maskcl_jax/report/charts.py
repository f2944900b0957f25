"""Curves for the page: which metrics share a chart, with how many points."""

import math
from collections.abc import Sequence
from typing import Any

from maskcl_jax.report.record import Points, Record

MOST = 500  # points of a curve: a longer one is averaged over equal parts

# The charts that come first: title, metric, what a value is.
FIRST = (
    ("Loss", "loss", ""),
    ("k-NN accuracy", "knn_accuracy", "%"),
    ("Learning rate", "learning_rate", ""),
    ("Throughput", "images_per_second", "images/s"),
)
PEAK = "Learning rate"  # its last value is next to 0
NOT_SHOWN = ("images_per_second_per_device",)  # the same curve as throughput


def charts(records: Sequence[Record]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Makes the charts of some runs.

    Returns:
        (the first ones, those of all other metrics). Each is {title, unit, peak, x: [steps], series: [{label, color,
        values, points}]}; `values` has None where a series has no point, `points` says whether they are few enough to
        be marked, `peak` whether the largest value stands above the chart instead of the last.
    """
    shown = {metric for _, metric, _ in FIRST} | set(NOT_SHOWN)
    others = sorted({metric for record in records for metric in record.curves} - shown)
    first = [chart(title, unit, curves_of(records, metric)) for title, metric, unit in FIRST]
    rest = [chart(metric.replace("_", " "), "", curves_of(records, metric)) for metric in others]
    return [c for c in first if c["series"]], [c for c in rest if c["series"]]


def curves_of(records: Sequence[Record], metric: str) -> list[tuple[str, int, Points]]:
    """(label, color, points) of every run that has a metric; a run keeps its color in all charts."""
    return [(record.name, i, record.curves[metric]) for i, record in enumerate(records) if metric in record.curves]


def chart(title: str, unit: str, curves: Sequence[tuple[str, int, Points]]) -> dict[str, Any]:
    """Puts some curves on one axis of steps."""
    thinned = [(label, color, dict(thin(points))) for label, color, points in curves]
    steps = sorted({step for _, _, points in thinned for step in points})
    series = [
        {
            "label": label,
            "color": color,
            "values": [points.get(step) for step in steps],
            "points": len(points) <= 20,
        }
        for label, color, points in thinned
    ]
    return {"title": title, "unit": unit, "peak": title == PEAK, "x": steps, "series": series}


def thin(points: Points) -> Points:
    """At most MOST points: the mean of each of as many equal parts, at its last step. Five digits are enough to see."""
    size = math.ceil(len(points) / MOST)
    parts = [points[start : start + size] for start in range(0, len(points), size)] if size else []
    return [(part[-1][0], float(f"{sum(value for _, value in part) / len(part):.5g}")) for part in parts]
