"""Which part of an image a view shows: one definition for the host and for the device.

A crop is a row of five int32: top, left, height and width in pixels of the image, and 1 where the view is mirrored
left-right. Geometry is computed in float64 with numpy and in float32 with jax.numpy.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from maskcl_jax.views.base import Batch, Crop, Entry, View

ATTEMPTS = 10  # torchvision.transforms.RandomResizedCrop


class Overlap(NamedTuple):
    """Two crops of an image must share a rectangle of at least `side`, a fraction of the other view's shorter side.

    Attributes:
        view: the name of the other view, which must come earlier.
        side: 0 < side <= 1.

    Example:
        >>> import maskcl_jax as mc
        >>> crop = mc.RandomResizedCrop(size=(32, 32), overlap=mc.Overlap(view="query", side=0.3))
        >>> crop.overlap.view
        'query'
    """

    view: str
    side: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(Crop):
    """A random part of the image, resized, perhaps mirrored.

    Attributes:
        size: (height, width) of the view in pixels.
        scale: range of the crop's fraction of the image area.
        ratio: range of its aspect ratio (width / height), drawn log-uniformly.
        interpolation: "bicubic" or "bilinear", both antialiased.
        flip: whether to mirror left-right with probability 1/2.
        master: where given, the crop is resized to this (height, width), flipped, and a window of `size` taken from it.
        shift: the window's corner lies 0..shift pixels down and across, drawn uniformly.
        shared: views with the same value show the same crop, flipped alike ("": the view's own name).
        overlap: what the crop must share with that of an earlier view. It is drawn again until it does, and after
            ATTEMPTS draws it is the other view's crop.

    Source: torchvision.transforms.RandomResizedCrop; master and shift: Huang et al. 2023 (CMAE), section 3.2.

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> crop = mc.RandomResizedCrop(size=(32, 32), scale=(0.5, 1.0), flip=False)
        >>> view = mc.View(crop=crop)
        >>> batch = HostBatch((view,), seed=0, epoch=0, indices=np.arange(8))
        >>> rows = crop.sample(view, batch, height=np.full(8, 60), width=np.full(8, 80))
        >>> top, left, height, width, mirrored = rows.T
        >>> bool((height * width >= 0.5 * 60 * 80 - 80).all()), int(mirrored.sum())
        (True, 0)
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: bool = True
    master: tuple[int, int] | None = None
    shift: int = 0
    shared: str = ""
    overlap: Overlap | None = None

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """The pixels and, of a shifted window, where it lies: see `Crop.entries`."""
        entries = {view.name: Entry((*self.size, channels), "uint8", "one view of the image")}
        if self.shift:
            meaning = "where the view's window lies in the crop it was taken from, pixels down and across"
            entries[view.key("shift")] = Entry((2,), "int32", meaning)
        return entries

    def sample(self, view: View, batch: Batch, height: Any, width: Any) -> Any:
        """Random crops: see `Crop.sample`."""
        xp = batch.xp
        numbers = batch.uniform(f"crop/{self.shared or view.name}", (4 * ATTEMPTS + 1,), np.float64)
        attempts = numbers[:, :-1].reshape(-1, ATTEMPTS, 4)
        other = self.overlap and (batch.views[self.overlap.view].crop.size, batch.crops[self.overlap.view][:, :4])
        box = self._box(attempts, _real(height, xp), _real(width, xp), other, xp)
        flip = (numbers[:, -1:] < 0.5) & self.flip
        return xp.concatenate([box, flip.astype(np.int32)], axis=1)

    def _box(self, noise, height, width, other, xp):
        """Uniform area, log-uniform ratio, ten attempts to fit, else the other crop or the center. (B, 4) int32."""
        (scale_low, scale_high), (ratio_low, ratio_high) = self.scale, self.ratio
        full_h, full_w = height[..., None], width[..., None]  # broadcasts over the attempts
        area = full_h * full_w * (scale_low + (scale_high - scale_low) * noise[..., 0])
        ratio = xp.exp(math.log(ratio_low) + (math.log(ratio_high) - math.log(ratio_low)) * noise[..., 1])
        h, w = _round(xp.sqrt(area / ratio), xp), _round(xp.sqrt(area * ratio), xp)
        top, left = xp.floor(noise[..., 2] * (full_h - h + 1)), xp.floor(noise[..., 3] * (full_w - w + 1))
        fits = (h > 0) & (h <= full_h) & (w > 0) & (w <= full_w)
        if other is not None:
            fits = fits & self._overlaps((top, left, h, w), *other, xp)
        first = fits & (xp.cumsum(fits, axis=-1) == 1)
        attempt = xp.stack([xp.sum(xp.where(first, x, 0.0), axis=-1) for x in (top, left, h, w)], axis=-1)
        if other is not None:
            fallback = _real(other[1], xp)
        else:
            # No attempt fits only where the image is long and thin: all of its short side, the ratio clamped.
            fallback = _centered(
                xp.minimum(height, _round(width / ratio_low, xp)),
                xp.minimum(width, _round(height * ratio_high, xp)),
                height,
                width,
                xp,
            )
        any_fits = xp.any(fits, axis=-1)[..., None]
        return xp.asarray(xp.where(any_fits, attempt, fallback + xp.zeros_like(attempt)), np.int32)

    def _overlaps(self, attempts, size, other, xp):
        """Whether a square of `overlap.side`, measured in the other view of `size`, lies in both crops."""
        top, left, h, w = attempts
        other = _real(other, xp)[..., None, :]
        down = xp.minimum(top + h, other[..., 0] + other[..., 2]) - xp.maximum(top, other[..., 0])
        across = xp.minimum(left + w, other[..., 1] + other[..., 3]) - xp.maximum(left, other[..., 1])
        least = self.overlap.side * min(size)
        return (down * size[0] >= least * other[..., 2]) & (across * size[1] >= least * other[..., 3])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterCrop(Crop):
    """The fixed view of evaluation.

    Attributes:
        size: (height, width) of the view in pixels.
        resize: 1.0 shows the whole image, resized to `size` as it is; r > 1 shows the center that remains when the
            image is resized to cover r * size and cropped to size, in one resampling.
        interpolation: "bicubic" or "bilinear", both antialiased.

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> crop = mc.CenterCrop(size=(32, 32), resize=1.25)
        >>> view = mc.View(crop=crop)
        >>> batch = HostBatch((view,), seed=0, epoch=0, indices=np.arange(1))
        >>> crop.sample(view, batch, height=80, width=100)  # top, left, height, width, mirrored
        array([[ 8, 18, 64, 64,  0]], dtype=int32)
    """

    size: tuple[int, int]
    resize: float = 1.0
    interpolation: str = "bicubic"
    master: None = None
    shift: int = 0

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """The pixels."""
        return {view.name: Entry((*self.size, channels), "uint8", "the image as evaluations see it")}

    def sample(self, view: View, batch: Batch, height: Any, width: Any) -> Any:
        """The crop of every image, (B, 5) int32: see `Crop.sample`."""
        xp = batch.xp
        height, width = _real(height, xp), _real(width, xp)
        if self.resize == 1.0:
            h, w = height, width
        else:
            scale = self.resize * xp.maximum(self.size[0] / height, self.size[1] / width)
            h = xp.maximum(1.0, xp.minimum(height, _round(self.size[0] / scale, xp)))
            w = xp.maximum(1.0, xp.minimum(width, _round(self.size[1] / scale, xp)))
        box = xp.asarray(_centered(h, w, height, width, xp), np.int32).reshape(-1, 4)
        return xp.concatenate([box, xp.zeros_like(box[:, :1])], axis=1)


def real(xp: Any) -> Any:
    """The dtype of geometry: a device has no float64."""
    return np.float32 if xp is jnp else np.float64


def _real(x, xp):
    return xp.asarray(x, real(xp))


def _centered(h, w, height, width, xp):
    return xp.stack([xp.floor((height - h) / 2), xp.floor((width - w) / 2), h, w], axis=-1)


def _round(x, xp):
    return xp.floor(x + 0.5)  # rounds halves up; np.round rounds them to even numbers
