"""What a method asks of the data: which views of an image, and which masks on them.

A method describes its views with these classes; `data/` builds them. Neither imports the other: what
passes between them is a batch, a dict of numpy arrays whose keys and shapes follow from the views:

| key | shape, dtype | meaning |
|---|---|---|
| view name (`image`; `query`, `key`) | (B, H, W, C) uint8 | one view of the image |
| `visible`, `masked` (`query_visible`, ...) | (B, n) int32 | patch indices; together a permutation of 0..N-1 |
| `mask_noise` (`query_mask_noise`, ...) | (B, N) float32 | uniform noise, where the mask is chosen on the device |
| `label` | (B,) int32 | -1 where the data has none; for evaluation only, never seen by a loss |
| `index` | (B,) int64 | which example of the split it is |
"""

import dataclasses

IMAGE = "image"  # the name of the one view of single-view methods; its mask keys carry no prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchMask:
    """A mask over the patches of one view, drawn for every image on its own.

    kind: "random" (the host draws `visible` and `masked`) or "noise" (the host draws `mask_noise` only and the
      method chooses on the device).
    num_patches: N, the number of patches of the view.
    num_visible: patches that stay visible, 1 <= num_visible < N.
    """

    kind: str
    num_patches: int
    num_visible: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One view: a random resized crop, perhaps flipped, perhaps with a mask.

    size: (height, width) in pixels. crop_scale: range of the crop's share of the image area. crop_ratio: range
    of its aspect ratio (width / height, drawn log-uniformly). interpolation: "bicubic" or "bilinear" (both
    antialiased). flip: mirror left-right with probability 1/2.
    """

    name: str = IMAGE
    size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: bool = True
    mask: PatchMask | None = None

    def key(self, suffix: str) -> str:
        """The batch key of something that belongs to this view: `visible` or `query_visible`."""
        return suffix if self.name == IMAGE else f"{self.name}_{suffix}"
