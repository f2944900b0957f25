"""What every ingredient of a view costs the host, in CPU milliseconds an image.

    python tests/benchmarks/host_cost.py

Of 64 images of 224 x 224 pixels; reading, decoding and resizing one of 500 x 375 takes about 2.4 (`input_scaling.py`).
"""

import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from maskcl_jax.benchmark import jpegs  # noqa: E402
from maskcl_jax.config.loading import load  # noqa: E402
from maskcl_jax.methods import create  # noqa: E402
from maskcl_jax.views.batches import HostBatch  # noqa: E402

COUNT = 64
METHODS = ("mae", "ccmim", "cmae", "maskco", "moco_v2", "saliency_masking")
VARIANTS = {"moco_v2": {"augment.photometric": "host"}, "saliency_masking": {"method.provider": "spectral_residual"}}


def costs(method, images: np.ndarray) -> dict[str, float]:
    """{ingredient: milliseconds an image}, all views together."""
    spent: dict[str, list[float]] = {}
    for _ in range(5):
        batch = HostBatch(method.views, seed=0, epoch=0, indices=np.arange(COUNT))
        for view in method.views:
            batch.crops[view.name] = view.crop.sample(view, batch, *np.full((2, COUNT), [[375], [500]]))
            batch.images[view.name] = images[:, : view.crop.size[0], : view.crop.size[1]]
        once: dict[str, float] = {}
        for view in method.views:
            for ingredient in view.ingredients:
                begin, name = time.process_time(), type(ingredient).__name__
                batch.arrays |= ingredient.sample(view, batch)
                once[name] = once.get(name, 0.0) + (time.process_time() - begin) / COUNT * 1e3
        for name, milliseconds in once.items():
            spent.setdefault(name, []).append(milliseconds)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def main() -> None:
    """Prints a line an ingredient of every method."""
    images = np.stack([np.asarray(Image.fromarray(jpegs.picture(i)).resize((224, 224))) for i in range(COUNT)])
    for name in METHODS:
        for changes in ({}, *([VARIANTS[name]] if name in VARIANTS else [])):
            config = load(name, "imagenet")
            for field, value in changes.items():
                parent, _, field_name = field.rpartition(".")
                config[parent][field_name] = value
            for ingredient, milliseconds in costs(create(config), images).items():
                print(f"{name} {changes or ''} {ingredient}: {milliseconds:.3f} ms", flush=True)


if __name__ == "__main__":
    main()
