"""What the host draws beside pixels, in processor milliseconds an image: masks, colours, boxes, saliency.

    python tests/benchmarks/host_cost.py

Of 64 images of 224 x 224 pixels; reading, decoding and resizing one of 500 x 375 takes about 2.4 (`input_scaling.py`).
"""

import pathlib
import runpy
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from maskcl_jax.data import boxes, cells, jpegs, masks, photometric  # noqa: E402
from maskcl_jax.methods import create  # noqa: E402
from maskcl_jax.views import SALIENCY  # noqa: E402

COUNT = 64
PART = {"seed": 0, "epoch": 0, "indices": np.arange(COUNT)}


def views_of(config: str, **fields) -> list:
    """The views of one of our configs for ImageNet."""
    c = runpy.run_path(str(ROOT / "configs" / config))["get_config"]("imagenet")
    c.method.update(fields)
    return list(create(c).views)


def cost(name: str, draw) -> None:
    """Prints the median of some calls, an image."""
    times = []
    for _ in range(6):
        begin = time.process_time()
        draw()
        times.append((time.process_time() - begin) / COUNT * 1e3)
    print(f"{name}: {statistics.median(times[1:]):.3f} ms", flush=True)


def main() -> None:
    """Prints a line a thing."""
    pictures = np.stack([np.asarray(Image.fromarray(jpegs.picture(i)).resize((224, 224))) for i in range(COUNT)])
    mae, moco, views = views_of("mae.py"), views_of("moco_v2.py"), views_of("maskco.py")
    cost("patch mask (MAE)", lambda: masks.draw(mae[0], **PART))
    cost("colours, two views (MoCo v2)", lambda: [photometric.draw(v, **PART) for v in moco])
    shown = {view.name: np.tile([20, 20, 200, 200, 0], (COUNT, 1)).astype(np.int32) for view in views}
    cost("boxes (MaskCo)", lambda: boxes.draw(views, shown, **PART))
    for provider in SALIENCY[:-1]:
        view = next(v for v in views_of("saliency_masking.py", provider=provider) if v.cells)
        cost(f"saliency and cells, {provider}", lambda v=view: cells.draw(v, pictures, maps=None, **PART))


if __name__ == "__main__":
    main()
