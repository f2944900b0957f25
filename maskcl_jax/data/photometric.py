"""What happens to the colours of a view: drawn here, done by `ops.photometric` on the device or on the host."""

import functools

import jax
import numpy as np

from maskcl_jax.data.randomness import per_example
from maskcl_jax.errors import UserError
from maskcl_jax.ops import photometric
from maskcl_jax.views import PHOTOMETRIC, PHOTOMETRIC_IDENTITY, Photometric, View

COLUMN = {name: i for i, name in enumerate(PHOTOMETRIC)}
JITTER = ("brightness", "contrast", "saturation", "hue")
DRAWS = 4 + len(JITTER) + 5  # order, factors; jitter?, grey?, blur?, sigma, solarize?
CHUNK = 16  # images that a thread of the host changes at once


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


def change(images: np.ndarray, parameters: np.ndarray, p: Photometric, pool) -> np.ndarray:
    """uint8 (B, H, W, C), their colours changed on the host as `parameters` (B, P) says; pool: of its threads."""
    parts = [slice(start, start + CHUNK) for start in range(0, len(images), CHUNK)]
    work = _on_processors(p.blur_p > 0)
    return np.concatenate(list(pool.map(lambda part: np.asarray(work(images[part], parameters[part])), parts)))


@functools.cache
def _on_processors(blur: bool):
    """`apply_each`, compiled for the host's processors whatever accelerator there is. Raises UserError without them."""
    try:
        processors = jax.local_devices(backend="cpu")
    except RuntimeError:
        raise UserError(
            "augment.photometric='host' needs JAX's processors, which JAX_PLATFORMS leaves out: add cpu to it "
            "(JAX_PLATFORMS=tpu,cpu), or set augment.photometric='device'"
        ) from None
    compiled = jax.jit(functools.partial(photometric.apply_each, blur=blur))

    def work(images, parameters):
        return compiled(*jax.device_put((images, parameters), processors[0]))

    return work
