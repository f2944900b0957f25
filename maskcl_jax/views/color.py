"""Color augmentation of a view: drawn here, applied by `ops.color` on the device or on the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.ops import color
from maskcl_jax.views.base import Batch, Entry, Ingredient, View

APPLIED_ON = ("device", "host")
DRAWS = 4 + len(color.JITTER) + 5  # numbers an image: order, factors; jitter?, gray?, blur?, sigma, solarize?


@dataclasses.dataclass(frozen=True, kw_only=True)
class Color(Ingredient):
    """Color jitter, grayscale, blur and solarization, as torchvision defines them, for each image on its own.

    Images of other than 3 channels take no saturation, hue and grayscale.

    Attributes:
        brightness: its factor lies in 1 - x to 1 + x; likewise contrast and saturation.
        hue: the hue turns by -x to x of the circle. The four come in random order, with probability jitter_p.
        grey_p: probability of grayscale; then follow blur_p and solarize_p, in this order after the jitter.
        blur_sigma: range of the Gaussian blur's sigma, in pixels.
        solarize_threshold: the smallest value, in 0..1, that solarization inverts.
        applied_on: "device" (inside the training step) or "host".

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.views.batches import HostBatch
        >>> color = mc.Color(hue=0.0, blur_p=0.0)
        >>> view = mc.View(name="query", crop=mc.CenterCrop(size=(32, 32)), ingredients=(color,))
        >>> arrays = color.sample(view, HostBatch((view,), seed=0, epoch=0, indices=np.arange(8)))
        >>> {name: value.shape[0] for name, value in arrays.items()}
        {'query_color': 8}
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
    solarize_threshold: float = color.SOLARIZE_THRESHOLD
    applied_on: str = "device"

    def entries(self, view: View, channels: int) -> dict[str, Entry]:
        """What the device has to apply; nothing where the host has done it.

        Args:
            view: the view that has the ingredient.
            channels: of the images.

        Returns:
            {batch key: Entry}; {} with applied_on="host".
        """
        if self.applied_on == "host":
            return {}
        meaning = f"color augmentation for the device to apply: {', '.join(color.COLUMNS)}"
        return {view.key("color"): Entry((len(color.COLUMNS),), "float32", meaning)}

    def host_only(self) -> str:
        """The device cannot leave colors to the host."""
        if self.applied_on == "device":
            return ""
        return (
            "augment.photometric='host' does not go with data.on_device=True, which makes views on the device: set "
            "augment.photometric='device'"
        )

    def needs_processes(self) -> bool:
        """Pixels, where the host changes them."""
        return self.applied_on == "host"

    def sample(self, view: View, batch: Batch) -> dict[str, Any]:
        """The parameters of every image; with applied_on="host" its pixels are changed instead.

        Args:
            view: the view that has the ingredient.
            batch: the source of random numbers and, on the host, the pixels of the view.

        Returns:
            {batch key: (B, P) float32}, the columns of `color.COLUMNS`; {} with applied_on="host".
        """
        parameters = self.parameters(batch.uniform(f"photometric/{view.name}", (DRAWS,), np.float64), batch.xp)
        if self.applied_on == "device":
            return {view.key("color"): parameters}
        apply = _on_cpu(self.blur_p > 0, self.solarize_threshold)
        batch.images[view.name] = np.asarray(apply(batch.images[view.name], parameters))
        return {}

    def parameters(self, numbers: Any, xp: Any = np) -> Any:
        """(B, DRAWS) uniform numbers -> the columns of `color.COLUMNS`, (B, P) float32; xp: numpy or jax.numpy."""
        order, factors, (jitter, gray, blur, sigma, solarize) = numbers[:, :4], numbers[:, 4:8], numbers[:, 8:].T
        jittered, columns = jitter < self.jitter_p, [*order.argsort(axis=1).T]
        for i, name in enumerate(color.JITTER):
            identity, width = color.IDENTITY[color.COLUMNS.index(name)], getattr(self, name)
            low = identity - width if name == "hue" else max(0.0, identity - width)
            drawn = low + (identity + width - low) * factors[:, i]
            columns.append(xp.where(jittered, drawn, identity))
        low, high = self.blur_sigma
        columns.append(gray < self.grey_p)
        columns.append(xp.where(blur < self.blur_p, low + (high - low) * sigma, 0.0))
        columns.append(solarize < self.solarize_p)
        return xp.stack([column.astype(np.float32) for column in columns], axis=1)


@functools.cache
def _on_cpu(blur: bool, threshold: float) -> Callable:
    """`color.apply_each`, compiled for the CPU whatever accelerator there is. Raises UserError without one."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError(
            "augment.photometric='host' needs JAX's CPU backend, which JAX_PLATFORMS leaves out: add cpu to it "
            "(JAX_PLATFORMS=tpu,cpu), or set augment.photometric='device'"
        ) from None
    compiled = jax.jit(functools.partial(color.apply_each, blur=blur, threshold=threshold))

    def apply(images, parameters):
        return compiled(*jax.device_put((images, parameters), cpu))

    return apply
