"""Judges saliency providers by where objects are: `python -m maskcl_jax.study.providers --data=DIR --out=DIR`.

DIR of --data holds {train,val}/images and, for some of them, a mask of the same name in {train,val}/things (PNG, 255
where an object is). Every provider ranks the cells of a grid; --run=RUN adds the EMA encoder of a run, as provider
`ema` uses it. --out gets providers.json and providers.png.
"""

import datetime
import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from maskcl_jax import cli
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate.encoder import open_encoder
from maskcl_jax.ops import cells
from maskcl_jax.study.results import commit
from maskcl_jax.study.tables import providers_table
from maskcl_jax.training import run_folder, visualize
from maskcl_jax.training.run import restore_run
from maskcl_jax.views import saliency

SIDE, GRID = 224, 7  # pixels of the images, cells along a side: the paper's
SPREAD = 0.6  # salient is a value >= mean - 0.6 std, as in configs/saliency_masking.py
TOP = 0.25  # fraction of the cells: the most that the paper's ratio masks
SHOWN = 8  # images of the figure


def define_flags() -> None:
    """Not at import: other commands have flags of these names."""
    flags.DEFINE_string("data", "", "The folder of images and masks.")
    flags.DEFINE_string("out", "runs/providers", "The folder to write to.")
    flags.DEFINE_string("run", "", "A run of saliency_masking or moco_v2 whose EMA encoder is judged too.")


def main(argv: list[str]) -> None:
    """Judges every provider, and writes the figures and some pictures."""
    data, out, run = flags.FLAGS.data, flags.FLAGS.out, flags.FLAGS.run
    images, objects = read(data)
    maps = {name: saliency.activation(images, GRID, name) for name in saliency.PROVIDERS}
    if run:
        maps["ema"] = of_run(run, images)
    rows = [{"provider": name, **scores(activation, objects)} for name, activation in maps.items()]
    content = {
        "images": len(images),
        "side": SIDE,
        "grid": GRID,
        "coverage": float(objects.mean()),
        "command": "python -m maskcl_jax.study.providers --data=DATA" + (" --run=RUN" if run else ""),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "providers": rows,
    }
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_text(folder / "providers.json", json.dumps(content, indent=1) + "\n")
    visualize.save_png(folder / "providers.png", picture(images, objects, maps))
    print(providers_table(content))


def read(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, SIDE, SIDE, 3) uint8, the fraction of every cell that objects cover (N, GRID, GRID)), N by name.

    Both are squashed to a square. Raises UserError where there is no image with a mask.
    """
    masks = sorted(pathlib.Path(folder).glob("*/things/*.png")) if folder else []
    if not masks:
        raise UserError(f"--data={folder} has no mask: it needs train/images, train/things and the like")
    images, objects = [], []
    for path in masks:
        beside = sorted((path.parents[1] / "images").glob(f"{path.stem}.*"))
        if not beside:
            raise UserError(f"{path} has no image of its name in {path.parents[1] / 'images'}: add it")
        with Image.open(beside[0]) as image, Image.open(path) as mask:
            images.append(np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
            covered = mask.convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            objects.append(np.asarray(covered).reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).mean(axis=(1, 3)) / 255)
    return np.stack(images), np.stack(objects)


def of_run(workdir: str, images: np.ndarray) -> np.ndarray:
    """(N, GRID, GRID) float32: the channel sum of the last map of a run's EMA encoder.

    Raises:
        UserError: The run has no EMA encoder, or its map has fewer cells than the grid.
    """
    encoder = open_encoder(restore_run(workdir), network="target", image_size=(SIDE, SIDE))
    total = jax.jit(lambda batch: encoder.feature_map(encoder.variables, batch).sum(axis=-1))
    sums = np.concatenate([np.asarray(total(jnp.asarray(images[i : i + 16]))) for i in range(0, len(images), 16)])
    side = sums.shape[1]
    if side % GRID:
        raise UserError(f"--run={workdir}: its last map has {side} cells a side, no multiple of {GRID}: give another")
    return sums.reshape(len(sums), GRID, side // GRID, GRID, side // GRID).mean(axis=(2, 4))


def scores(activation: np.ndarray, objects: np.ndarray) -> dict[str, float]:
    """How well a provider finds objects, each a mean over images with half of a 95 % interval.

    Args:
        activation: (N, G, G), larger is more salient; equal cells are ranked at random.
        objects: (N, G, G), the fraction of each cell that objects cover.

    Returns:
        {iou, iou_half: of the salient cells with those that objects cover by half or more (images without one do not
        count); precision, precision_half: the mean cover of the TOP cells; gain, gain_half: that less the mean cover of
        the image, which is 0 by chance}.
    """
    salient, truth = cells.foreground(activation, SPREAD, np), objects >= 0.5
    shown = truth.any(axis=(1, 2))
    union = (salient | truth).sum(axis=(1, 2))
    iou = ((salient & truth).sum(axis=(1, 2)) / union)[shown]
    flat = activation.reshape(len(activation), -1)
    noise = np.random.default_rng(0).random(flat.shape)
    top = np.lexsort((noise, -flat), axis=1)[:, : round(TOP * flat.shape[1])]
    precision = np.take_along_axis(objects.reshape(flat.shape), top, axis=1).mean(axis=1)
    gain = precision - objects.mean(axis=(1, 2))
    found = {}
    for name, values in (("iou", iou), ("precision", precision), ("gain", gain)):
        found |= {name: float(values.mean()), f"{name}_half": float(1.96 * values.std(ddof=1) / len(values) ** 0.5)}
    return found


def picture(images: np.ndarray, objects: np.ndarray, maps: Mapping[str, np.ndarray]) -> np.ndarray:
    """A figure: some images, where objects are, and what each provider finds salient."""
    chosen = np.linspace(0, len(images) - 1, SHOWN).astype(int)
    columns = {"image": images[chosen] / 255.0, "objects": np.asarray(cells.heat(objects[chosen], (SIDE, SIDE)))}
    columns |= {name: np.asarray(cells.heat(values[chosen], (SIDE, SIDE))) for name, values in maps.items()}
    return visualize.grid(columns)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
