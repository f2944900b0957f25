"""What happens to the colours of a view, drawn on the host; `maskcl_jax.photometric` does it on the device."""

import numpy as np

from maskcl_jax.data.randomness import per_example
from maskcl_jax.views import PHOTOMETRIC, PHOTOMETRIC_IDENTITY, View

COLUMN = {name: i for i, name in enumerate(PHOTOMETRIC)}
JITTER = ("brightness", "contrast", "saturation", "hue")
DRAWS = 4 + len(JITTER) + 5  # order, factors; jitter?, grey?, blur?, sigma, solarize?


def draw(view: View, *, seed: int, epoch: int, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The `photometric` entry (B, P) float32 of a batch for one view; empty where its colours stay."""
    p = view.photometric
    if p is None:
        return {}
    noise = np.empty((len(indices), DRAWS))
    generators = per_example(seed, f"photometric/{view.name}", epoch=epoch, indices=indices)
    for row, generator in zip(noise, generators, strict=True):
        generator.random(out=row)
    order, factors, (jitter, grey, blur, sigma, solarize) = noise[:, :4], noise[:, 4:8], noise[:, 8:].T
    out = np.tile(np.float32(PHOTOMETRIC_IDENTITY), (len(indices), 1))
    out[:, :4] = order.argsort(axis=1)
    jittered = jitter < p.jitter_p
    for i, name in enumerate(JITTER):
        centre, width = PHOTOMETRIC_IDENTITY[COLUMN[name]], getattr(p, name)
        low = centre - width if name == "hue" else max(0.0, centre - width)
        drawn = low + (centre + width - low) * factors[:, i]
        out[:, COLUMN[name]] = np.where(jittered, drawn, centre)
    low, high = p.blur_sigma
    out[:, COLUMN["grey"]] = grey < p.grey_p
    out[:, COLUMN["blur_sigma"]] = np.where(blur < p.blur_p, low + (high - low) * sigma, 0.0)
    out[:, COLUMN["solarize"]] = solarize < p.solarize_p
    return {view.key("photometric"): out}
