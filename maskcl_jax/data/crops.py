"""Which box of an image a view shows: the one definition, for the host and for the device.

The functions take `xp`: numpy, and work in float64, or jax.numpy, which has float32.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from maskcl_jax.data.randomness import per_example
from maskcl_jax.views import IMAGE, View

ATTEMPTS = 10  # torchvision.transforms.RandomResizedCrop


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalView:
    """The fixed view of evaluation.

    size: (height, width) in pixels. resize: 1.0 shows the whole image, resized to `size` as it is; r > 1
    shows the centre that remains when the image is resized to cover r * size and cut to size, in one
    resampling.
    """

    size: tuple[int, int]
    resize: float = 1.0
    name: str = IMAGE
    interpolation: str = "bicubic"
    master: None = None
    boxes: None = None


@dataclasses.dataclass(frozen=True)
class Draws:
    """What the random crops of a batch are made from.

    noise (B, ATTEMPTS, 4) in [0, 1), flip (B,) bool, shift (B, 2) int64: where the window lies in the master.
    """

    noise: np.ndarray
    flip: np.ndarray
    shift: np.ndarray


def draw(view: View | EvalView, *, seed: int, epoch: int, indices: np.ndarray) -> Draws:
    """The uniform numbers behind the crops of one view; all zero for the fixed view of evaluation."""
    noise = np.zeros((len(indices), ATTEMPTS, 4))
    flip = np.zeros(len(indices), bool)
    if isinstance(view, EvalView):
        return Draws(noise, flip, np.zeros((len(indices), 2), np.int64))
    stream = f"crop/{view.crop or view.name}"
    for i, generator in enumerate(per_example(seed, stream, epoch=epoch, indices=indices)):
        generator.random(out=noise[i])
        flip[i] = view.flip and generator.random() < 0.5
    return Draws(noise, flip, draw_shift(view, seed=seed, epoch=epoch, indices=indices))


def draw_shift(view: View, *, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Where the window of a view lies in its master: (B, 2) int64, down and across, each uniform in 0..view.shift."""
    shift = np.zeros((len(indices), 2), np.int64)
    if view.shift:
        for i, generator in enumerate(per_example(seed, f"shift/{view.name}", epoch=epoch, indices=indices)):
            shift[i] = generator.integers(0, view.shift + 1, size=2)
    return shift


def recorded(views: list) -> dict[str, str]:
    """{view name: batch key of its crop} of those views whose crops must be known to draw boxes in them."""
    names = {name for view in views if view.boxes for name in (view.name, view.boxes.shared_with)}
    return {view.name: view.key("crop") for view in views if view.name in names}


def boxes(views: list, noise: list, height, width, xp=np) -> list:
    """The box of every view of an image, each as `box` gives it. noise: of each view, from `draw`."""
    found = {}
    for view, numbers in zip(views, noise, strict=True):
        partner = view.boxes and next(other for other in views if other.name == view.boxes.shared_with)
        found[view.name] = box(view, numbers, height, width, xp, partner and (partner.size, found[partner.name]))
    return list(found.values())


def box(view: View | EvalView, noise, height, width, xp=np, partner=None):
    """The box a view shows: (..., 4) int32 as top, left, height, width in pixels of the image.

    noise: (..., ATTEMPTS, 4) from `draw`. height, width: of the image, (...) or one for all. partner: (size, box) of
    the view with which this one shares `view.boxes`.
    """
    height, width = xp.asarray(height, real(xp)), xp.asarray(width, real(xp))
    if isinstance(view, EvalView):
        return _centre_box(view, noise, height, width, xp)
    return _random_box(view, noise, height, width, xp, partner)


def _random_box(view: View, noise, height, width, xp, partner):
    """RandomResizedCrop: uniform area, log-uniform ratio, ten attempts to fit, else the centre.

    With a partner an attempt fits only where the two share enough, and where none does the partner's box is taken.
    """
    (area_low, area_high), (ratio_low, ratio_high) = view.crop_scale, view.crop_ratio
    full_h, full_w = height[..., None], width[..., None]  # beside the attempts
    area = full_h * full_w * (area_low + (area_high - area_low) * noise[..., 0])
    ratio = xp.exp(math.log(ratio_low) + (math.log(ratio_high) - math.log(ratio_low)) * noise[..., 1])
    h, w = _round(xp.sqrt(area / ratio), xp), _round(xp.sqrt(area * ratio), xp)
    top, left = xp.floor(noise[..., 2] * (full_h - h + 1)), xp.floor(noise[..., 3] * (full_w - w + 1))
    fits = (h > 0) & (h <= full_h) & (w > 0) & (w <= full_w)
    if partner is not None:
        fits = fits & _has_room(view, (top, left, h, w), *partner, xp)
    first = fits & (xp.cumsum(fits, axis=-1) == 1)
    attempt = xp.stack([xp.sum(xp.where(first, x, 0.0), axis=-1) for x in (top, left, h, w)], axis=-1)
    if partner is not None:
        fallback = xp.asarray(partner[1], real(xp))
    else:
        # No attempt fits only where the image is long and thin: all of its short side, the ratio clamped.
        fallback = _centred(
            xp.minimum(height, _round(width / ratio_low, xp)),
            xp.minimum(width, _round(height * ratio_high, xp)),
            height,
            width,
            xp,
        )
    any_fits = xp.any(fits, axis=-1)[..., None]
    return xp.asarray(xp.where(any_fits, attempt, fallback + xp.zeros_like(attempt)), np.int32)


def _has_room(view: View, attempts, size: tuple[int, int], other, xp):
    """Whether the smallest of the view's boxes, measured in its partner of `size`, lies in both crops."""
    top, left, h, w = attempts
    other = xp.asarray(other, real(xp))[..., None, :]
    down = xp.minimum(top + h, other[..., 0] + other[..., 2]) - xp.maximum(top, other[..., 0])
    across = xp.minimum(left + w, other[..., 1] + other[..., 3]) - xp.maximum(left, other[..., 1])
    least = view.boxes.side[0] * min(size)
    return (down * size[0] >= least * other[..., 2]) & (across * size[1] >= least * other[..., 3])


def _centre_box(view: EvalView, noise, height, width, xp):
    if view.resize == 1.0:
        h, w = height, width
    else:
        scale = view.resize * xp.maximum(view.size[0] / height, view.size[1] / width)
        h = xp.maximum(1.0, xp.minimum(height, _round(view.size[0] / scale, xp)))
        w = xp.maximum(1.0, xp.minimum(width, _round(view.size[1] / scale, xp)))
    return xp.asarray(_centred(h, w, height, width, xp) + xp.zeros_like(noise[..., 0, :]), np.int32)


def real(xp):
    """The dtype of geometry: a device has no float64."""
    return np.float32 if xp is jnp else np.float64


def _centred(h, w, height, width, xp):
    return xp.stack([xp.floor((height - h) / 2), xp.floor((width - w) / 2), h, w], axis=-1)


def _round(x, xp):
    return xp.floor(x + 0.5)  # halves up; numpy's own goes to even numbers
