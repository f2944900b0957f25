"""The images of a study: a fixed part of each class of a data set, drawn once and written beside the runs."""

import pathlib
from typing import Any

import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.study.definition import Data

SEED = 0  # of the draw: the same images in every run of every study


def prepare(data: Data, folder: str, out: pathlib.Path) -> pathlib.Path:
    """Writes the part of a data set that a study takes, unless it is there.

    Args:
        data: Which part.
        folder: That holds the file.
        out: The folder to write to.

    Returns:
        The path of the part.

    Raises:
        UserError: The file is not there, has not the arrays, or too few images of a class.
    """
    target, source = out / data.prepared, pathlib.Path(folder) / data.file
    if target.exists():
        return target
    if not folder or not source.is_file():
        raise UserError(f"--data={folder} has no file {data.file}: give the folder that holds it")
    with np.load(source) as file:
        missing = {f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")} - set(file.files)
        if missing:
            raise UserError(f"{source} has no array {', '.join(sorted(missing))}: the study needs labeled images")
        arrays = {name: file[name] for name in file.files}
    out.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".tmp.npz")
    columns: dict[str, Any] = part(arrays, data)
    np.savez(beside, **columns)
    beside.rename(target)
    return target


def part(arrays: dict[str, np.ndarray], data: Data) -> dict[str, np.ndarray]:
    """The arrays of the part: `class_names`, and images and labels of both splits in their first order."""
    train, rest = drawn(arrays["train_labels"], data.train_per_class)
    if data.held_out:
        chosen, _ = drawn(arrays["train_labels"][rest], data.test_per_class)
        test, split = rest[chosen], "train"
    else:
        (test, _), split = drawn(arrays["test_labels"], data.test_per_class), "test"
    if not len(test):
        raise UserError(f"{data.file}: no image is left for the held-out part: lower train_per_class")
    kept = {name: value for name, value in arrays.items() if name == "class_names"}
    kept |= {f"train_{kind}": arrays[f"train_{kind}"][train] for kind in ("images", "labels")}
    return kept | {f"test_{kind}": arrays[f"{split}_{kind}"][test] for kind in ("images", "labels")}


def drawn(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices of `count` images of each class, 0: all; the other indices), both ascending. Raises UserError."""
    rng, chosen = np.random.default_rng(SEED), []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise UserError(f"class {label} has {len(members)} images, the study takes {count}: lower its number")
        chosen.append(rng.permutation(members)[: count or None])
    indices = np.sort(np.concatenate(chosen))
    return indices, np.setdiff1d(np.arange(len(labels)), indices)
