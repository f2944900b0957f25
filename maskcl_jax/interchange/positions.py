"""Position tables of weights: recognized as one of the fixed tables, or kept as a parameter, resized where needed."""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from maskcl_jax import methods
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert
from maskcl_jax.interchange.facts import Facts, with_config
from maskcl_jax.models.vit import ViT, resize_position_table

ORDERS = ("mae", "mocov3")
TOLERANCE = 1e-5  # the authors computed theirs in float64, or in float32, and stored float32


def place_tables(
    tree: dict[str, Any], tables: Mapping[str, np.ndarray], facts: Facts, config: ml_collections.ConfigDict
) -> tuple[dict[str, Any], list[str]]:
    """Puts the position tables of weights where the run's networks have them.

    Args:
        tree: Our arrays, without tables; completed here.
        tables: Our path -> a table (1, 1 + N, D) as they store it.
        facts: Of the encoder.
        config: Of the run; `config.model.positions` is set where needed.

    Returns:
        (the tree with its learned tables, notes for the user).

    Raises:
        UserError: For a decoder's table that is not the fixed one, and for one whose grid cannot be known.
    """
    if not tables:
        return tree, []
    method = methods.create(config)
    encoder = method.encoder
    if not isinstance(encoder, ViT):
        raise UserError(f"method.name={config.method.name!r} trains a ResNet and the weights are a ViT's")
    table = tables["params/encoder/pos_embed"]
    grid = grid_of(table.shape[1] - 1, facts, encoder)
    check_decoders(tables, grid, method.decoders)
    order = order_of(table, grid) if grid == encoder.grid else None
    if order is not None and encoder.positions != "learned":
        if order == encoder.positions:
            return tree, []
        set_positions(config, order)
        return tree, [f"positions: the fixed table of order {order}"]
    notes = ["positions: kept as a parameter"] if encoder.positions != "learned" else []
    if grid != encoder.grid:
        notes = [f"positions: resized from {grid[0]}x{grid[1]} to {encoder.grid[0]}x{encoder.grid[1]}, now a parameter"]
    for path, value in tables.items():
        if convert.network_of(path) == "encoder":
            convert.set_path(tree, path, resize_position_table(value[0], grid, encoder.grid)[None])
    set_positions(config, "learned")
    return tree, notes


def set_positions(config: ml_collections.ConfigDict, positions: str) -> None:
    """Sets the field that only imported runs have."""
    with config.unlocked():
        config.model.positions = positions


def grid_of(count: int, facts: Facts, encoder: ViT) -> tuple[int, int]:
    """The grid of a table of `count` patches: as a file states it, as the run has it, or square."""
    if facts.record is not None:
        facts = facts._replace(size=tuple(facts.record["data.image_size"]))
    side = round(count**0.5)
    grids = [encoder.grid, (side, side)]
    if facts.size is not None:
        height, width = (length // encoder.patch_size for length in facts.size)
        grids.insert(0, (height, width))
    for grid in grids:
        if grid[0] * grid[1] == count:
            return grid
    raise UserError(
        f"pos_embed has {count} patches, which is no square, and not the {encoder.grid[0]}x{encoder.grid[1]} of "
        f"data.image_size: {with_config('--config.data.image_size=H,W, the own one of the weights')}"
    )


def order_of(table: np.ndarray, grid: tuple[int, int]) -> str | None:
    """The order of the fixed table that it is; None for another table."""
    width = table.shape[-1]
    if width % 4:
        return None
    for order in ORDERS:
        if np.abs(table - convert.fixed_table(width, grid, order)).max() <= TOLERANCE:
            return order
    return None


def check_decoders(tables: Mapping[str, np.ndarray], grid: tuple[int, int], decoders: Mapping[str, Any]) -> None:
    """Raises UserError for a decoder's table that is not the fixed one which the run's decoder computes."""
    for path, table in tables.items():
        name = convert.network_of(path)
        decoder = decoders.get(name)
        if name != "encoder" and decoder is not None and order_of(table, grid) != decoder.positions:
            raise UserError(
                f"{name}: its position table {table.shape} is not the sine-cosine table (order {decoder.positions}) of "
                f"{grid[0]}x{grid[1]} patches that the run decodes with"
            )
