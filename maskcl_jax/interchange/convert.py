"""Moves weights between our trees and PyTorch state dicts along a layout, in numpy alone."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.models.position import sincos_table


class Shape(NamedTuple):
    """What a layout's transforms must know of a ViT besides the arrays; a ResNet's need nothing."""

    patch_size: int = 0
    channels: int = 0
    grid: tuple[int, int] = (0, 0)
    widths: Mapping[str, int] = MappingProxyType({})  # {"encoder": ..., "decoder": ...}, of the fixed position tables
    order: str = "mae"  # of their halves
    learned: bool = False  # the encoders' tables are parameters


def patch_kernel(weight: np.ndarray, shape: Shape) -> np.ndarray:
    """Their convolution (D, C, p, p) -> our dense kernel (p*p*C, D), rows ordered (row, column, channel)."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def patch_conv(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """The inverse of `patch_kernel`."""
    p, c = shape.patch_size, shape.channels
    return kernel.reshape(p, p, c, -1).transpose(3, 2, 0, 1)


# name -> (theirs to ours, ours to theirs)
TRANSFORMS = {
    "same": (lambda x, s: x, lambda x, s: x),
    "transpose": (lambda x, s: x.T, lambda x, s: x.T),
    "patch_conv": (patch_kernel, patch_conv),
    "conv": (lambda x, s: x.transpose(2, 3, 1, 0), lambda x, s: x.transpose(3, 2, 0, 1)),
    "counter": (lambda x, s: np.asarray(x, np.int32), lambda x, s: np.asarray(x, np.int64)),
    "pointer": (lambda x, s: np.asarray(x, np.int32).reshape(()), lambda x, s: np.asarray(x, np.int64).reshape(1)),
    "table": (lambda x, s: x, lambda x, s: x),  # where it is a parameter
}


def table(row, shape: Shape) -> np.ndarray:
    """(1, 1 + N, D): a fixed position table as they store it, zeros for the cls token."""
    return fixed_table(shape.widths[network_of(row.ours)], shape.grid, shape.order)


def fixed_table(width: int, grid: tuple[int, int], order: str) -> np.ndarray:
    """(1, 1 + N, width)."""
    patches = sincos_table(width, grid, order=order)
    return np.concatenate([np.zeros((1, width), np.float32), patches])[None]


def network_of(path: str) -> str:
    """ "encoder" for "target_params/encoder/pos_embed"."""
    return path.split("/")[1]


def from_torch(state: dict[str, np.ndarray], rows, shape: Shape) -> dict:
    """A state dict -> {"params": ..., "batch_stats": ...} (nested).

    Raises UserError listing keys that are missing or left over, and a fixed position table that is not ours.
    """
    wanted = {row.theirs for row in rows}
    missing, extra = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or extra:
        raise UserError(f"the weights do not fit: missing {listed(missing)}; left over {listed(extra)}")
    tree: dict = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        value = state[row.theirs]
        if row.transform == "table" and not (shape.learned and network_of(row.ours) == "encoder"):
            check_table(row, value, shape)
            continue
        value = TRANSFORMS[row.transform][0](value, shape)
        if row.part is None:
            set_path(tree, row.ours, value)
        else:
            parts.setdefault(row.ours, {})[row.part] = value
    for path, values in parts.items():
        set_path(tree, path, np.concatenate([values[i] for i in sorted(values)], axis=-1))
    return tree


def to_torch(tree: dict, rows, shape: Shape) -> dict[str, np.ndarray]:
    """{"params": ..., "batch_stats": ...} -> a complete state dict."""
    state = {}
    for row in rows:
        if row.transform == "table" and not has_path(tree, row.ours):
            state[row.theirs] = table(row, shape)
            continue
        value = np.asarray(get_path(tree, row.ours))
        if row.part is not None:
            value = np.split(value, 3, axis=-1)[row.part]
        state[row.theirs] = TRANSFORMS[row.transform][1](value, shape)
    return state


def gradients_to_torch(grads: dict, rows, shape: Shape) -> dict[str, np.ndarray]:
    """The gradients of `params` under their keys and in their shapes; what has no gradient is left out."""
    trained = [row for row in rows if row.ours.startswith("params/") and row.transform != "table"]
    return to_torch({"params": grads}, trained, shape)


def check_table(row, value: np.ndarray, shape: Shape) -> None:
    """Raises UserError where a stored position table is not the one that we compute."""
    ours = table(row, shape)
    if value.shape != ours.shape or np.abs(value - ours).max() > 1e-5:
        raise UserError(
            f"{row.theirs} {value.shape} is not the sine-cosine table {ours.shape} of this encoder "
            f"(order {shape.order}): the weights are of another image size or another method"
        )


def listed(keys: list[str]) -> str:
    """The first few of many."""
    return (", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")) or "nothing"


def set_path(tree: dict, path: str, value) -> None:
    """tree["a"]["b"] = value for "a/b"."""
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def get_path(tree: dict, path: str):
    """tree["a"]["b"] for "a/b"."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def has_path(tree: dict, path: str) -> bool:
    """Whether tree["a"]["b"] is there."""
    for name in path.split("/"):
        if name not in tree:
            return False
        tree = tree[name]
    return True


def paths_of(tree: dict, above: str = "") -> dict[str, np.ndarray]:
    """{"a/b": leaf, ...} of nested dicts."""
    found = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        found |= paths_of(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return found
