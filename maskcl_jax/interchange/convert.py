"""Converts weights between our trees and PyTorch state dicts along a layout, with numpy only."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.interchange.layouts import Row
from maskcl_jax.models.vit import sincos_table


class Shape(NamedTuple):
    """What a layout's transforms must know of a ViT besides the arrays; a ResNet's need nothing.

    Attributes:
        patch_size: Side of a patch.
        channels: Of the images.
        grid: Patches down and across.
        widths: {"encoder": ..., "decoder": ...} of the fixed position tables.
        order: Of the halves of these tables, "mae" or "mocov3".
        learned: Whether the encoders' tables are parameters.
    """

    patch_size: int = 0
    channels: int = 0
    grid: tuple[int, int] = (0, 0)
    widths: Mapping[str, int] = MappingProxyType({})
    order: str = "mae"
    learned: bool = False


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
    "table": (lambda x, s: x, lambda x, s: x),  # only of tables that are parameters
}


def table(row: Row, shape: Shape) -> np.ndarray:
    """(1, 1 + N, D): the fixed position table of a row."""
    return fixed_table(shape.widths[network_of(row.ours)], shape.grid, shape.order)


def fixed_table(width: int, grid: tuple[int, int], order: str) -> np.ndarray:
    """(1, 1 + N, width) float32: a fixed position table as they store it, zeros for the cls token."""
    patches = sincos_table(width, grid, order=order)
    return np.concatenate([np.zeros((1, width), np.float32), patches])[None]


def network_of(path: str) -> str:
    """ "encoder" for "target_params/encoder/pos_embed"."""
    return path.split("/")[1]


def from_torch(state: dict[str, np.ndarray], rows: Sequence[Row], shape: Shape) -> dict[str, Any]:
    """Converts a state dict to our tree.

    Args:
        state: Their key -> array.
        rows: Of the layout.
        shape: Of the network.

    Returns:
        {"params": ..., "batch_stats": ...}, nested.

    Raises:
        UserError: Listing keys that are missing or left over, for a tensor of a shape that cannot be, and for a fixed
            position table that is not ours.
    """
    expected = {row.theirs for row in rows}
    missing, extra = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or extra:
        raise UserError(
            f"the weights do not fit: missing {comma_separated(missing)}; left over {comma_separated(extra)}"
        )
    tree: dict = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        value = state[row.theirs]
        if row.transform == "table" and not (shape.learned and network_of(row.ours) == "encoder"):
            check_table(row, value, shape)
            continue
        try:
            value = TRANSFORMS[row.transform][0](value, shape)
        except (ValueError, IndexError, TypeError):
            raise UserError(f"{row.theirs} has the shape {value.shape}, which no such tensor has") from None
        if row.part is None:
            set_path(tree, row.ours, value)
        else:
            parts.setdefault(row.ours, {})[row.part] = value
    for path, values in parts.items():
        shapes = [value.shape for value in values.values()]
        if not shapes[0] or any(other != shapes[0] for other in shapes):
            raise UserError(f"the parts of {path} have the shapes {', '.join(map(str, shapes))}: they must be alike")
        set_path(tree, path, np.concatenate([values[i] for i in sorted(values)], axis=-1))
    return tree


def to_torch(tree: dict[str, Any], rows: Sequence[Row], shape: Shape) -> dict[str, np.ndarray]:
    """Converts our tree {"params": ..., "batch_stats": ...} to a complete state dict."""
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


def gradients_to_torch(grads: dict[str, Any], rows: Sequence[Row], shape: Shape) -> dict[str, np.ndarray]:
    """The gradients of `params` under their keys and in their shapes, as far as there are gradients."""
    trained = [row for row in rows if row.ours.startswith("params/") and row.transform != "table"]
    return to_torch({"params": grads}, trained, shape)


def check_table(row: Row, value: np.ndarray, shape: Shape) -> None:
    """Raises UserError where a stored position table is not the one that we compute."""
    ours = table(row, shape)
    if value.shape != ours.shape or np.abs(value - ours).max() > 1e-5:
        raise UserError(
            f"{row.theirs} {value.shape} is not the sine-cosine table {ours.shape} of this encoder "
            f"(order {shape.order}): the weights are of another image size or another method"
        )


def comma_separated(keys: Sequence[str]) -> str:
    """The first few of many keys, for an error."""
    return (", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")) or "nothing"


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """tree["a"]["b"] = value for "a/b"."""
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def get_path(tree: dict[str, Any], path: str) -> Any:
    """tree["a"]["b"] for "a/b"."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def has_path(tree: dict[str, Any], path: str) -> bool:
    """Whether tree["a"]["b"] exists."""
    for name in path.split("/"):
        if name not in tree:
            return False
        tree = tree[name]
    return True


def paths_of(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"a/b": leaf, ...} of nested dicts."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        leaves |= paths_of(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return leaves
