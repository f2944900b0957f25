"""What a method asks of the data: which views of an image, and which masks on them.

A method describes its views with these classes; `data/` builds them. Neither imports the other: what
passes between them is a batch, a dict of numpy arrays whose keys and shapes follow from the views:

| key | shape, dtype | meaning |
|---|---|---|
| view name (`image`; `query`, `key`) | (B, H, W, C) uint8 | one view of the image |
| `visible`, `masked` (`query_visible`, ...) | (B, n) int32 | patch indices; together a permutation of 0..N-1 |
| `photometric` (`key_photometric`, ...) | (B, P) float32 | what the device does to the colours (`PHOTOMETRIC`) |
| `shift` (`key_shift`) | (B, 2) int32 | where a shifted view lies in the picture it was cut from: down, across |
| `query_boxes`, `key_boxes` | (B, R, 4) float32 | x0, y0, x1, y1 in pixels of that view: the same places of the image |
| `mask_noise` (`query_mask_noise`, ...) | (B, N) float32 | uniform noise, where the mask is chosen on the device |
| `activation` (`query_activation`, ...) | (B, G, G) float32 | how salient the cells of a view are |
| `RULE_cells` (`query_cells`, `negative_cells`) | (B, G, G, C) bool | cells, True = masked; C: the channels, or 1 |
| `RULE_window` | (B, 4) int32 | top, left, height, width in pixels of a focal mask; zeros: the cells hold |
| `RULE_noise`, `RULE_ratio` | (B, G, G, C), (B,) float32 | what cells were drawn from, to redraw |
| `label` | (B,) int32 | -1 where the data has none; for evaluation only, never seen by a loss |
| `index` | (B,) int64 | which example of the split it is |
"""

import dataclasses

# The columns of a `photometric` array: which of brightness, contrast, saturation, hue comes first to fourth, by how
# much each, and then: grey (0 or 1), the blur's sigma in pixels (0: none), solarised (0 or 1).
PHOTOMETRIC = (
    *("order_1", "order_2", "order_3", "order_4"),
    *("brightness", "contrast", "saturation", "hue"),
    *("grey", "blur_sigma", "solarize"),
)
PHOTOMETRIC_ON = ("device", "host")  # who changes the colours
PHOTOMETRIC_IDENTITY = (0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)

# Who can tell on the host how salient a cell is (`data.saliency`; "maps": the user's own files, `data.saliency_maps`).
SALIENCY = ("boundary", "spectral_residual", "fine_grained", "center", "uniform", "maps")

IMAGE = "image"  # the name of the one view of single-view methods; its mask keys carry no prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchMask:
    """A mask over the patches of one view, drawn for every image on its own.

    kind: "random" (the host draws `visible` and `masked`) or "noise" (the host draws `mask_noise` only and the
      method chooses on the device).
    num_patches: N, the number of patches of the view.
    num_visible: patches that stay visible, 1 <= num_visible < N.
    block, grid: with a block of b > 1, b x b patches are hidden or shown together (kind "random" only); the grid
      (rows, columns) of patches is then divisible by b, and num_visible by b * b.
    """

    kind: str
    num_patches: int
    num_visible: int
    block: int = 1
    grid: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRule:
    """How one mask over the cells of a view is drawn, for every image on its own (`maskcl_jax.ops.cells` has the rule).

    name: of its batch keys. ratio: range of the mask ratio, drawn uniformly. background: whether other than salient
    cells are hidden too. cap: see `cells.counts`. focal_p: probability of a focal mask in place of cells; window: its
    (height, width) in pixels, placed uniformly; keep_window: whether all but the window is hidden, or the window.
    channelwise_p: probability, where there are cells, that every channel has its own; channels: C of the cells.
    redraw: whether the device gets noise and ratio too.
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
class CellMasks:
    """Masks over the grid x grid cells of one view, guided by one map of how salient they are.

    provider: who makes the map, one of SALIENCY; maps_path: the folder of provider "maps". spread: a cell is
    salient from the map's mean less so many standard deviations. The map is made of the view as the batch holds it:
    cropped and flipped, its colours not yet changed.
    """

    grid: int
    provider: str
    spread: float
    rules: tuple[CellRule, ...]
    maps_path: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photometric:
    """How the colours of a view are changed: torchvision's operations, each image on its own.

    brightness, contrast, saturation: factors from 1 - x to 1 + x; hue: a turn from -x to x; the four in random order,
    with probability jitter_p. grey_p, blur_p, solarize_p: probabilities, in this order after the jitter. blur_sigma:
    range, in pixels. Images of other than 3 channels take no saturation, hue and grey.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Random operations on the pixels of a view, by the host: timm's `rand-m{magnitude}-mstd{std}-inc1`.

    operations: so many an image, each of them with `probability`. magnitude: mean of a normal distribution of deviation
    std, cut to 0..10. fill: the colour, one number a channel, of what turns and shears leave empty.
    """

    operations: int = 2
    magnitude: float = 9.0
    std: float = 0.5
    probability: float = 0.5
    fill: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes in what two views both show: the same places of an image, once in the pixels of each.

    shared_with: the name of the other view, which must come earlier. count: R, boxes an image, each drawn on its own.
    side: range of their sides in that other view, as shares of its shorter side, 0 < low <= high <= 1. ratio: range of
    width / height there, low <= 1 <= high. The view that has this field is cropped anew until what both show has room
    for the smallest box, and at last like the other one.
    """

    shared_with: str
    count: int
    side: tuple[float, float]
    ratio: tuple[float, float] = (0.5, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One view: a random resized crop, perhaps flipped, perhaps with a mask.

    size: (height, width) in pixels. crop_scale: range of the crop's share of the image area. crop_ratio: range
    of its aspect ratio (width / height, drawn log-uniformly). interpolation: "bicubic" or "bilinear" (both
    antialiased). flip: mirror left-right with probability 1/2.
    master: where given, the crop is resized to this (height, width), flipped, and a window of `size` cut from it, whose
    corner lies 0..shift pixels down and across, drawn uniformly. crop: the name of the crop; views that carry the same
    one show the same crop, flipped alike ("": the view's own name). photometric: of the colours; photometric_on: who
    applies it, one of PHOTOMETRIC_ON. randaugment: by the host, on what the batch holds. boxes: shared with an earlier
    view; neither then has a master. cells: masks over the cells of a ConvNet's view.
    """

    name: str = IMAGE
    size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: bool = True
    crop: str = ""
    master: tuple[int, int] | None = None
    shift: int = 0
    photometric: Photometric | None = None
    photometric_on: str = "device"
    randaugment: RandAugment | None = None
    boxes: Boxes | None = None
    mask: PatchMask | None = None
    cells: CellMasks | None = None

    def key(self, suffix: str) -> str:
        """The batch key of something that belongs to this view: `visible` or `query_visible`."""
        return suffix if self.name == IMAGE else f"{self.name}_{suffix}"

    @property
    def on_device(self) -> Photometric | None:
        """The photometric operations that are left to the device."""
        return self.photometric if self.photometric_on == "device" else None

    @property
    def on_host(self) -> Photometric | None:
        """Those that the host applies."""
        return self.photometric if self.photometric_on == "host" else None


def batch_shapes(views, batch_size: int, channels: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """{key: (shape, name of the dtype)} of a batch of these views, for those who need no pixels."""
    out: dict[str, tuple[tuple[int, ...], str]] = {}
    for view in views:
        out[view.name] = (*view.size, channels), "uint8"
        if view.on_device is not None:
            out[view.key("photometric")] = (len(PHOTOMETRIC),), "float32"
        if view.shift:
            out[view.key("shift")] = (2,), "int32"
        if view.boxes is not None:
            for key in (f"{view.boxes.shared_with}_boxes", view.key("boxes")):
                out[key] = (view.boxes.count, 4), "float32"
        out |= _patch_shapes(view) | _cell_shapes(view)
    out |= {"label": ((), "int32"), "index": ((), "int64")}
    return {key: ((batch_size, *shape), dtype) for key, (shape, dtype) in out.items()}


def _patch_shapes(view: View) -> dict:
    if (mask := view.mask) is None:
        return {}
    if mask.kind == "noise":
        return {view.key("mask_noise"): ((mask.num_patches,), "float32")}
    counts = {"visible": mask.num_visible, "masked": mask.num_patches - mask.num_visible}
    return {view.key(name): ((count,), "int32") for name, count in counts.items()}


def _cell_shapes(view: View) -> dict:
    if (masks := view.cells) is None:
        return {}
    square = (masks.grid, masks.grid)
    out = {view.key("activation"): (square, "float32")}
    for rule in masks.rules:
        cells = (*square, rule.channels)
        out |= {f"{rule.name}_cells": (cells, "bool"), f"{rule.name}_window": ((4,), "int32")}
        if rule.redraw:
            out |= {f"{rule.name}_noise": (cells, "float32"), f"{rule.name}_ratio": ((), "float32")}
    return out
