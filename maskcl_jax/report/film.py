"""The figures of a run as frames over training: one row a stage (image, mask, reconstruction), one column an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from maskcl_jax import config as config_lib
from maskcl_jax import methods
from maskcl_jax.report import pixels
from maskcl_jax.report.record import Record
from maskcl_jax.training import visualize

FRAMES = 12  # at most: the first, the last and some between, evenly spaced
SIDE = 112  # pixels of a cell at most


def film(record: Record, *, images: int) -> dict[str, Any] | None:
    """Makes the frames of a run.

    Args:
        record: The run.
        images: How many images are shown.

    Returns:
        {stages: titles, frames: [{step, src}], left_out: frames that are not shown}; None for a run without figures.
        `stages` is () where the figures are not of the form that the method draws now; they are shown whole.
    """
    if not record.figures:
        return None
    chosen = spaced(len(record.figures), FRAMES)
    stages, size = stages_of(record), tuple(record.config["data.image_size"])
    frames = []
    for step, path in (record.figures[i] for i in chosen):
        with Image.open(path) as file:
            figure = np.asarray(file.convert("RGB"))
        cells = visualize.cells(figure, len(stages), size) if stages else None
        if cells is None:
            stages = ()
        frames.append((step, figure, cells))
    shown = [
        {"step": step, "src": frame(cells, images) if stages and cells is not None else whole(figure)}
        for step, figure, cells in frames
    ]
    return {"stages": stages, "frames": shown, "left_out": len(record.figures) - len(chosen)}


def stages_of(record: Record) -> tuple[str, ...]:
    """The titles of a figure's columns; () for a method that cannot be made here."""
    try:
        return methods.create(config_lib.unflat(record.config)).picture_names
    except Exception:  # a method of the user's own, whose module is elsewhere, can raise anything
        return ()


def frame(cells: np.ndarray, images: int) -> str:
    """Cells (stages, rows, h, w, 3) -> one image, stages from top to bottom, as an address."""
    shown = cells[:, :images]
    stages, count = shown.shape[:2]
    flat = pixels.shrink(shown.reshape(stages * count, *shown.shape[2:]), SIDE)
    gap = max(1, flat.shape[1] // 24)
    return pixels.data_uri(pixels.sprite(flat, columns=count, gap=gap), lossless=flat.shape[1] <= pixels.SMALL)


def whole(figure: np.ndarray) -> str:
    """A figure as it was drawn."""
    return pixels.data_uri(pixels.shrink(figure[None], 1024)[0], lossless=False)


def spaced(count: int, most: int) -> Sequence[int]:
    """At most `most` indices below `count`, the first and the last among them, evenly spaced."""
    if count <= most:
        return range(count)
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
