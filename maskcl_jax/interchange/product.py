"""What is exported: one network of a run, or all of them, as tensors under the names of a format."""

from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert
from maskcl_jax.interchange.catalog import LAYOUTS, Depths
from maskcl_jax.models.resnet import RESNETS
from maskcl_jax.models.vit import ViT
from maskcl_jax.training import run as run_lib

KINDS = {"vit": "ViT encoder", "resnet": "ResNet encoder", "full": "whole pre-training model"}


class Product(NamedTuple):
    """An export before it is written.

    Attributes:
        format: A key of `LAYOUTS`.
        kind: "vit", "resnet" or "full" (see `catalog`).
        network: "online" or "target".
        run: That is exported.
        depths: Of its networks.
        tree: Our arrays; of an encoder, `params` are those of the network.
        state: The same arrays under the names of the format.
        left_out: What the run has and the format has no name for.
    """

    format: str
    kind: str
    network: str
    run: run_lib.Run
    depths: Depths
    tree: dict[str, Any]
    state: dict[str, np.ndarray]
    left_out: tuple[str, ...]

    @property
    def config(self) -> ConfigDict:
        """The run's config."""
        return self.run.config

    @property
    def encoder(self) -> Any:
        """The linen module of the encoder."""
        return self.run.method.encoder

    @property
    def is_vit(self) -> bool:
        """Whether the encoder is a ViT, not a ResNet."""
        return isinstance(self.encoder, ViT)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.config.data.channels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return tuple(self.config.data.image_size)

    @property
    def blocks(self) -> list[int]:
        """The number of blocks of each stage of a ResNet."""
        return list(self.encoder.stages)

    @property
    def bottleneck(self) -> bool:
        """Whether the blocks of a ResNet are bottlenecks."""
        return self.encoder.bottleneck

    @property
    def moments(self) -> tuple[list[float], list[float]]:
        """(mean, std) of the pixels in 0..1, one value a channel."""
        data = self.config.data
        mean, std = (list(values) * (self.channels // len(values)) for values in (data.mean, data.std))
        return mean, std


def product_of(run: run_lib.Run, *, format: str, network: str, full: bool) -> Product:
    """Collects the tensors of an export.

    Args:
        run: The run.
        format: A key of `LAYOUTS`.
        network: "online" or "target".
        full: The whole pre-training model instead of an encoder.

    Returns:
        The product.

    Raises:
        UserError: Where the run has no such network, or the format no names for it.
    """
    kind = "full" if full else "vit" if isinstance(run.method.encoder, ViT) else "resnet"
    if kind not in LAYOUTS[format]:
        known = " or ".join(f"a {KINDS[k]}" for k in LAYOUTS[format])
        fitting = ", ".join(name for name, layouts in LAYOUTS.items() if kind in layouts)
        raise UserError(f"--format={format} is for {known}, not for a {KINDS[kind]}: use one of {fitting}")
    layout, is_vit = LAYOUTS[format][kind], isinstance(run.method.encoder, ViT)
    if bool(layout.counted) != is_vit:
        mine, theirs = (KINDS["vit" if vit else "resnet"] for vit in (is_vit, not is_vit))
        raise UserError(f"--format={format} --full is for a method with a {theirs}, not with a {mine}")
    tree = whole_tree(run) if full else network_tree(run, network)
    depths = depths_of(run, tree)
    rows = layout.rows(depths)
    named = {row.ours for row in rows}
    paths = convert.paths_of(tree)
    if missing := sorted(row.ours for row in rows if row.transform != "table" and row.ours not in paths):
        raise UserError(
            f"--format={format} --full names what a run of {run.config.method.name!r} as configured does not have: "
            f"{convert.comma_separated(missing)}"
        )
    state = convert.to_torch(tree, rows, shape_of(run))
    left_out = tuple(sorted({"/".join(path.split("/")[:2]) for path in paths if path not in named}))
    return Product(format, kind, network, run, depths, tree, state, left_out)


def network_tree(run: run_lib.Run, network: str) -> dict[str, Any]:
    """The encoder of the online or of the target network."""
    state = run.state
    target = network == "target"
    if target and state.target_params is None:
        raise UserError(f"--network=target: a run of {run.config.method.name!r} has no target network")
    params = state.target_params if target else state.params
    variables = run.method.encoder_variables(params, state.model_state, target=target)
    return jax.device_get({collection: {"encoder": tree} for collection, tree in variables.items()})


def whole_tree(run: run_lib.Run) -> dict[str, Any]:
    """Both networks, their statistics, and the queue."""
    state = run.state
    tree = {"params": state.params, **state.model_state}
    if state.target_params is not None:
        tree["target_params"] = state.target_params
    return jax.device_get(tree)


def depths_of(run: run_lib.Run, tree: dict[str, Any]) -> Depths:
    """The depths of a run's networks."""
    encoder, decoders = tree["params"]["encoder"], run.method.decoders
    is_vit = isinstance(run.method.encoder, ViT)
    return Depths(
        encoder=run.config.model.depth if is_vit else 0,
        decoder=decoders["decoder"].depth if "decoder" in decoders else 0,
        feature_decoder=decoders["feature_decoder"].depth if "feature_decoder" in decoders else 0,
        head=len(tree["params"].get("projector", {})),
        final_norm="norm" in encoder or not is_vit,
        resnet=RESNETS[10] if is_vit else run.method.encoder.size,
    )


def shape_of(run: run_lib.Run) -> convert.Shape:
    """What the transforms must know of a run's encoder."""
    encoder = run.method.encoder
    if not isinstance(encoder, ViT):
        return convert.Shape()
    decoders = run.method.decoders
    widths = {"encoder": encoder.width} | {name: decoder.width for name, decoder in decoders.items()}
    orders = [decoder.positions for decoder in decoders.values()] + [encoder.positions]
    learned = encoder.positions == "learned"
    return convert.Shape(encoder.patch_size, encoder.channels, encoder.grid, widths, orders[0], learned)
