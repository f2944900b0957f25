"""Masks over the cells of a ConvNet's view, guided by a map of how salient the cells are."""

import dataclasses
from typing import Any

import numpy as np

from maskcl_jax.ops import cells
from maskcl_jax.views import saliency
from maskcl_jax.views.base import Batch, Entry, Ingredient, View
from maskcl_jax.views.batches import HostBatch
from maskcl_jax.views.saliency_maps import SaliencyMaps

# Who can say on the host how salient a cell is; "maps": the user's own files.
SALIENCY = (*saliency.PROVIDERS, "maps")
ON_DEVICE = ("uniform", "center")  # providers that look at no pixel
DRAWS = 5  # numbers a mask: focal?, channel-wise?, ratio, window down and across; the noise of the cells follows


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRule:
    """How one mask over the cells of a view is drawn, independently for every image (`ops.cells` has the rule).

    Attributes:
        name: of its batch keys.
        ratio: range of the mask ratio, drawn uniformly.
        background: whether other than salient cells are masked too.
        cap: see `cells.counts`.
        focal_p: probability of a focal mask instead of cells.
        window: (height, width) in pixels of a focal mask, placed uniformly.
        keep_window: whether all but the window is masked, or the window.
        channelwise_p: probability, where there are cells, that every channel has its own.
        channels: C of the cells.
        redraw: whether the device gets noise and ratio too, to draw the cells again.

    Example:
        >>> import maskcl_jax as mc
        >>> mc.CellRule(name="query_mask", ratio=(0.2, 0.4), focal_p=0.5, window=(16, 16)).keep_window
        True
    """

    name: str
    ratio: tuple[float, float]
    background: bool = True
    cap: tuple[float, float] | None = None
    focal_p: float = 0.0
    window: tuple[int, int] = (0, 0)
    keep_window: bool = True
    channelwise_p: float = 0.0
    channels: int = 1
    redraw: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellMask(Ingredient):
    """Masks over the grid x grid cells of one view, all guided by one map of saliency.

    The map is computed from the pixels that the view has when this ingredient is sampled.

    Attributes:
        grid: cells along each side.
        provider: who computes the map, one of SALIENCY.
        spread: a cell is salient from the map's mean less so many standard deviations.
        rules: one a mask.
        maps_path: the folder of provider "maps".
        maps: the maps in that folder; set by `open`.

    Source: Chin et al. 2024 (poster, and joycenerd/Saliency-Guided-Masking-for-ConvNets).

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> rule = mc.CellRule(name="mask", ratio=(0.25, 0.25))
        >>> mask = mc.CellMask(grid=4, provider="boundary", spread=0.6, rules=(rule,))
        >>> view = mc.View(crop=mc.CenterCrop(size=(32, 32)), ingredients=(mask,))
        >>> batch = HostBatch((view,), seed=0, epoch=0, indices=np.arange(8))
        >>> batch.images["image"] = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        >>> batch.crops["image"] = view.crop.sample(view, batch, 32, 32)
        >>> arrays = mask.sample(view, batch)
        >>> arrays["mask_cells"].shape, arrays["activation"].shape
        ((8, 4, 4, 1), (8, 4, 4))
    """

    grid: int
    provider: str
    spread: float
    rules: tuple[CellRule, ...]
    maps_path: str = ""
    maps: SaliencyMaps | None = None

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """The map, and the cells and the window of each mask.

        Args:
            view: the view that has the ingredient.
            channels: of the images.

        Returns:
            {batch key: Entry}: `activation` of the view, and the keys of each rule by its name.
        """
        square = (self.grid, self.grid)
        entries = {view.key("activation"): Entry(square, "float32", "how salient the cells of the view are")}
        for rule in self.rules:
            shape = (*square, rule.channels)
            entries[f"{rule.name}_cells"] = Entry(shape, "bool", "True where a cell is masked")
            meaning = "top, left, height, width in pixels of a focal mask; zeros: the cells hold"
            entries[f"{rule.name}_window"] = Entry((4,), "int32", meaning)
            if rule.redraw:
                entries[f"{rule.name}_noise"] = Entry(shape, "float32", "what the cells were drawn from")
                entries[f"{rule.name}_ratio"] = Entry((), "float32", "the mask ratio they were drawn with")
        return entries

    def open(self, examples: Any, data_config: Any) -> "CellMask":
        """Finds the user's maps of provider "maps".

        Args:
            examples: the training split of the data source.
            data_config: `config.data`.

        Returns:
            A copy that holds the maps; itself of other providers.

        Raises:
            UserError: A map is missing or cannot be read.
        """
        if self.provider != "maps":
            return self
        return dataclasses.replace(self, maps=SaliencyMaps(self.maps_path, examples, data_config.path))

    def host_only(self) -> str:
        """Only maps that look at no pixel can be computed on the device."""
        if self.provider in ON_DEVICE:
            return ""
        return (
            f"method.provider={self.provider!r} is made on the host: with data.on_device=True use "
            f"{' or '.join(ON_DEVICE)}, or set data.on_device=False"
        )

    def needs_processes(self) -> bool:
        """Maps that look at pixels, and those in files."""
        return self.provider not in ON_DEVICE

    def sample(self, view: View, batch: Batch) -> dict[str, Any]:
        """The map of every image, and each mask that follows from it.

        Args:
            view: the view that has the ingredient.
            batch: the pixels and crops of the view, and the source of random numbers.

        Returns:
            {batch key: (B, ...) array}, as `entries` declares them.
        """
        xp, crops = batch.xp, batch.crops[view.name]
        if self.maps is not None:
            assert isinstance(batch, HostBatch)  # see `host_only`
            activation = self.maps.cells(batch.indices, crops, self.grid)
        else:
            activation = saliency.activation(batch.images[view.name], self.grid, self.provider)
        arrays = {view.key("activation"): xp.asarray(activation)}
        for rule in self.rules:
            count = DRAWS + self.grid**2 * rule.channels
            numbers = batch.uniform(f"cells/{rule.name}", (count,))
            arrays |= masks_of(rule, arrays[view.key("activation")], self.spread, view.crop.size, numbers, xp)
        return arrays


def masks_of(rule: CellRule, activation: Any, spread: float, size: tuple[int, int], numbers: Any, xp: Any) -> dict:
    """The batch entries of one mask.

    Args:
        rule: of the mask.
        activation: (B, G, G) float32.
        spread: see `CellMask`.
        size: (height, width) of the view.
        numbers: (B, DRAWS + G * G * channels) uniform in [0, 1).
        xp: numpy or jax.numpy.
    """
    grid = activation.shape[1]
    focal, channelwise, ratio, *corner = numbers[:, :DRAWS].T
    noise = numbers[:, DRAWS:].reshape(-1, grid, grid, rule.channels)
    noise = xp.where((channelwise < rule.channelwise_p)[:, None, None, None], noise, noise[..., :1])
    ratio = np.float32(rule.ratio[0]) + np.float32(rule.ratio[1] - rule.ratio[0]) * ratio
    window = _windows(rule, size, xp.stack(corner, axis=1), xp) * (focal < rule.focal_p)[:, None]
    masked = cells.choose(activation, noise, ratio, spread=spread, background=rule.background, cap=rule.cap, xp=xp)
    masked = masked & (window[:, 2] == 0)[:, None, None, None]
    arrays = {f"{rule.name}_cells": masked, f"{rule.name}_window": window}
    if rule.redraw:
        arrays |= {f"{rule.name}_noise": noise, f"{rule.name}_ratio": ratio}
    return arrays


def _windows(rule: CellRule, size: tuple[int, int], corner: Any, xp: Any) -> Any:
    """(B, 4) int32, the corner of each uniform over where the window fits. corner: (B, 2) in [0, 1)."""
    room = np.array(size) - rule.window
    start = xp.minimum(xp.floor(corner * (room + 1)), room)
    return xp.concatenate([start, xp.broadcast_to(xp.asarray(rule.window), start.shape)], axis=1).astype(np.int32)
