"""What happens to the colours of a view, drawn on the host; `maskcl_jax.photometric` does it on the device."""

import numpy as np

from maskcl_jax.data.randomness import per_example
from maskcl_jax.views import PHOTOMETRIC, PHOTOMETRIC_IDENTITY, Photometric, View

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
    return {view.key("photometric"): of_noise(p, noise)}


def of_noise(p: Photometric, noise, xp=np):
    """The columns of `views.PHOTOMETRIC`, (B, P) float32, that (B, DRAWS) uniform numbers make; xp: or jax.numpy."""
    order, factors, (jitter, grey, blur, sigma, solarize) = noise[:, :4], noise[:, 4:8], noise[:, 8:].T
    jittered, columns = jitter < p.jitter_p, [*order.argsort(axis=1).T]
    for i, name in enumerate(JITTER):
        centre, width = PHOTOMETRIC_IDENTITY[COLUMN[name]], getattr(p, name)
        low = centre - width if name == "hue" else max(0.0, centre - width)
        drawn = low + (centre + width - low) * factors[:, i]
        columns.append(xp.where(jittered, drawn, centre))
    low, high = p.blur_sigma
    columns.append(grey < p.grey_p)
    columns.append(xp.where(blur < p.blur_p, low + (high - low) * sigma, 0.0))
    columns.append(solarize < p.solarize_p)
    return xp.stack([column.astype(np.float32) for column in columns], axis=1)
