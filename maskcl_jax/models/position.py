"""Fixed sine-cosine position tables, and the resizing of tables."""

import numpy as np


def sincos_table(width: int, grid: tuple[int, int], *, order: str = "mae") -> np.ndarray:
    """Sine and cosine of one coordinate, then of the other, at frequencies 10000^(-i/(width/4)).

    Args:
      width: Width of the tokens, divisible by 4.
      grid: (rows, columns) of patches.
      order: What the first half of the channels encodes. "mae": the column (facebookresearch/mae `util/pos_embed.py`);
        "mocov3": the row (facebookresearch/moco-v3 `vits.py`).

    Returns:
      (rows*columns, width) float32. The cls token's row is zeros and not part of the table.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    halves = {"mae": (columns, rows), "mocov3": (rows, columns)}[order]
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = [half.reshape(-1, 1) * omega for half in halves]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def resize_position_table(table: np.ndarray, grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
    """Resizes a position table as torch's bicubic interpolation does; the cls row is copied.

    That is: align_corners false, no antialiasing, coefficient -0.75, edges repeated. Common resizers differ in one of
    these and give other tables.

    Args:
      table: (1 + rows*columns, D), the cls row first.
      grid: Its (rows, columns).
      new_grid: Those of the result.

    Returns:
      (1 + new rows * new columns, D) float32.

    Source: facebookresearch/mae `interpolate_pos_embed`.
    """
    table = np.asarray(table, np.float64)
    patches = table[1:].reshape(*grid, -1)
    down, across = (cubic_matrix(old, new) for old, new in zip(grid, new_grid, strict=True))
    resized = np.einsum("ri,cj,ijd->rcd", down, across, patches).reshape(-1, table.shape[1])
    return np.concatenate([table[:1], resized]).astype(np.float32)


def cubic_matrix(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """(new, old) weights of cubic convolution along one axis."""
    source = (np.arange(new) + 0.5) * old / new - 0.5
    base = np.floor(source).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(source - (base + tap))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        where = np.clip(base + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), where), np.where(distance <= 1, near, far))
    return weights
