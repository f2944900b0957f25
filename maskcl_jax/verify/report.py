"""Computes the case of a reference file and compares array by array."""

import dataclasses
import json
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from maskcl_jax.errors import UserError, first_line
from maskcl_jax.verify import cases, convnet_cases, finetune_cases, saliency_cases, target_cases


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared array.

    Attributes:
        name: Its key in the reference file.
        error: max|ours - theirs|, divided by what `kind` says.
        limit: The largest error that passes.
        kind: "relative" (to the rms of theirs), "of peak" (to their largest value), "absolute", "exact", or "stats"
            (of a summary: each number relative to its own scale).
    """

    name: str
    error: float
    limit: float
    kind: str

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; False for NaN."""
        return self.error <= self.limit

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAIL"
        return f"{verdict:<5} {self.error:9.2e}  limit {self.limit:.0e} {self.kind:<9} {self.name}"


MODULES = (cases, target_cases, convnet_cases, saliency_cases, finetune_cases)
CASES = {name: case for module in MODULES for name, case in module.CASES.items()}

COMPARED = ("outputs/", "grads/", "grads_stats/", "grads_rowsum/", "weights_stats/")

# What an error is divided by, from the reference array.
SCALES = {
    "relative": lambda x: float(np.sqrt(np.mean(x**2))) if x.size else 0.0,
    "of peak": lambda x: float(np.max(np.abs(x), initial=0.0)),
    "absolute": lambda x: 1.0,
    "exact": lambda x: 1.0,
}


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, arrays) of a reference file. Raises UserError where it is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return json.loads(str(arrays.pop("config"))), arrays
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a reference file") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a reference file ({type(error).__name__}: {first_line(error)})") from None


def arrays_under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays under `prefix/`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def verify_file(path: str | pathlib.Path, *, kernels: str = "auto") -> list[Check]:
    """Compares every output and every gradient of one file.

    Args:
        path: A reference file.
        kernels: `config.kernels` of the networks.

    Returns:
        One check per array of the file.

    Raises:
        UserError: The file cannot be read, has no case here, or holds nothing to compare.
    """
    config, arrays = read(pathlib.Path(path))
    name = config.get("method", pathlib.Path(path).stem)
    if name not in CASES:
        raise UserError(f"{path} is of the case {name!r}, which is not one of {', '.join(CASES)}")
    case = CASES[name]
    try:
        with jax.default_matmul_precision("highest"):
            computed = case.compute(
                config | {"kernels": kernels}, arrays_under(arrays, "weights"), arrays_under(arrays, "inputs")
            )
        computed = case.finish(computed, arrays)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}, which the case {name!r} needs") from None
    wanted = [key for key in sorted(arrays) if key.startswith(COMPARED) and not any(a in key for a in case.absent)]
    if not wanted:
        raise UserError(f"{path} holds nothing to compare: no array under {', '.join(COMPARED)}")
    return [compare(key, computed.get(key), arrays[key], case) for key in wanted]


def stats_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest error of a summary [sum, L2 norm, sum of absolute values, first 16 elements], each to its scale."""
    first = theirs[3:]
    rms = np.sqrt(np.mean(first[first != 0] ** 2)) if first.any() else 0.0
    scale = np.concatenate([[theirs[2], theirs[1], theirs[2]], np.full(16, rms)])
    return float(np.max(np.abs(ours - theirs) / np.where(scale > 0, scale, 1.0)))


def compare(key: str, ours: np.ndarray | None, theirs: np.ndarray, case: cases.Case) -> Check:
    """Compares one array. One that the case did not compute, or computed in another shape, fails."""
    kind, limit = case.limit(key)
    if ours is None or np.shape(ours) != theirs.shape:
        return Check(f"{key}  ({'not computed' if ours is None else f'shape {np.shape(ours)}'})", np.inf, limit, kind)
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if kind == "stats":
        return Check(key, stats_error(ours, theirs), limit, kind)
    difference = float(np.max(np.abs(ours - theirs), initial=0.0))
    # An array of zeros has no scale of its own: its error is absolute.
    return Check(key, difference / (SCALES[kind](theirs) or 1.0), limit, kind)
