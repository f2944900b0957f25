"""Runs a reference file through its case and compares array by array."""

import dataclasses
import json
import pathlib
import zipfile

import jax
import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.verify import cases


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared array: its error as `kind` defines it ("relative" to the rms, "absolute", "exact"), its limit."""

    name: str
    error: float
    limit: float
    kind: str

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.error <= self.limit

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAIL"
        return f"{verdict:<5} {self.error:9.2e}  limit {self.limit:.0e} {self.kind:<9} {self.name}"


def read(path: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(config, arrays) of a reference file. Raises UserError where it is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return json.loads(str(arrays.pop("config"))), arrays
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a reference file") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a reference file ({type(error).__name__}: {error})") from None


def group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays under `prefix/`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def verify_file(path) -> list[Check]:
    """Every output and every gradient of one file, compared. Raises UserError for a file that has no case here."""
    config, arrays = read(pathlib.Path(path))
    name = config.get("method", pathlib.Path(path).stem)
    if name not in cases.CASES:
        raise UserError(f"{path} is of the case {name!r}, which is not one of {', '.join(cases.CASES)}")
    case = cases.CASES[name]
    try:
        with jax.default_matmul_precision("highest"):
            computed = case.compute(config, group(arrays, "weights"), group(arrays, "inputs"))
    except KeyError as error:
        raise UserError(f"{path} lacks {error}, which the case {name!r} needs") from None
    wanted = {
        key: value
        for key, value in arrays.items()
        if key.startswith(("outputs/", "grads/")) and not key.endswith(cases.WITHOUT_COUNTERPART)
    }
    return [compare(key, computed.get(key), value, case) for key, value in sorted(wanted.items())]


def compare(key: str, ours, theirs: np.ndarray, case) -> Check:
    """One array. What the case did not compute, or computed in another shape, fails: nothing is passed over."""
    kind, limit = case.limit(key)
    if ours is None or np.shape(ours) != theirs.shape:
        return Check(f"{key}  ({'not computed' if ours is None else f'shape {np.shape(ours)}'})", np.inf, limit, kind)
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    difference = float(np.max(np.abs(ours - theirs), initial=0.0))
    size = float(np.sqrt(np.mean(theirs**2))) if kind == "relative" and theirs.size else 0.0
    return Check(key, difference / size if size else difference, limit, kind)
