"""Draws the figures of the documentation with the package's own views, masks and fills: `python docs/figures.py`.

The photographs are those of scikit-image's wheel that are in the public domain. What ccMIM attends to comes from a
trained encoder: `python docs/figures.py --workdir=RUN` measures it again, in a run of the README's first command, and
keeps it in `docs/figures/ccmim_importance.json`. Everything else follows from the code alone.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskcl_jax import config as config_lib
from maskcl_jax.data.loading import load_views
from maskcl_jax.data.sources import Arrays, embedded
from maskcl_jax.methods import Method, create, options
from maskcl_jax.ops import masking
from maskcl_jax.training.run import restore_run
from maskcl_jax.views.base import View
from maskcl_jax.views.batches import HostBatch
from maskcl_jax.views.crop import CenterCrop

FOLDER = pathlib.Path(__file__).with_name("figures")
IMPORTANCE = FOLDER / "ccmim_importance.json"
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket")
SIDE, GAP, LINE, TEXT = 176, 8, 15, 12  # pixels
HIDDEN = np.array([0.55, 0.55, 0.6])  # the color of a masked patch
RED, BLUE = "#d62728", "#1f77b4"
MOST_BYTES = 90_000


class Panel(NamedTuple):
    """One image of a figure: (H, W, 3) floats in 0..1, and what is written below it."""

    image: np.ndarray
    caption: str


def photograph(name: str) -> np.ndarray:
    """(512, 512, 3) uint8: the center of an embedded photograph."""
    (file,) = [file for file in embedded.photographs() if file.stem == name]
    with Image.open(file) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(square.resize((512, 512), Image.Resampling.LANCZOS))


def method_of(name: str, **fields: Any) -> Method:
    """The method of a config, as its preset `imagenet` says; names of fields are written with __ for a dot."""
    config = config_lib.load(name, "imagenet")
    config.update_from_flattened_dict({field.replace("__", "."): value for field, value in fields.items()})
    return create(config)


def batch_of(views: Sequence[View], names: Sequence[str] = PHOTOGRAPHS[:1], *, seed: int = 0) -> dict[str, Any]:
    """What a training step gets of some photographs."""
    examples = Arrays(np.stack([photograph(name) for name in names]), np.zeros(len(names), np.int32))
    batch = HostBatch(views, seed=seed, epoch=0, indices=np.arange(len(names)))
    load_views(batch, examples, channels=3, exif=False)
    batch.add_ingredients()
    return batch.images | batch.arrays


def whole(views: Sequence[View]) -> list[View]:
    """The views without their random crops."""
    return [dataclasses.replace(view, crop=CenterCrop(size=view.crop.size)) for view in views]


def hide(image: np.ndarray, masked: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) whose patches with the indices `masked` are gray."""
    mask = np.zeros(grid[0] * grid[1], bool)
    mask[masked] = True
    size = (image.shape[0] // grid[0], image.shape[1] // grid[1])
    return np.where(np.kron(mask.reshape(grid), np.ones(size))[..., None] > 0, HIDDEN, image)


def outlined(image: np.ndarray, box: Sequence[float], color: str) -> np.ndarray:
    """An image with a rectangle x0, y0, x1, y1."""
    canvas = Image.fromarray(np.uint8(np.round(255 * image)))
    ImageDraw.Draw(canvas).rectangle(tuple(map(float, box)), outline=color, width=5)
    return np.asarray(canvas) / 255.0


def unit(images: Any) -> np.ndarray:
    """The first image of a batch, clipped to 0..1."""
    image = np.asarray(images, np.float32)[0]
    return np.clip(image / (255.0 if np.asarray(images).dtype == np.uint8 else 1.0), 0.0, 1.0)


# --- Figures --------------------------------------------------------------------------------------------------------
def mae() -> list[Panel]:
    """The image, what the encoder sees, what the decoder predicts."""
    method = method_of("mae")
    batch = batch_of(method.views)
    image, grid, patch = unit(batch["image"]), method.encoder.grid, method.config.model.patch_size
    patches = np.asarray(masking.patchify(image[None], patch))
    mean, std = patches.mean(axis=2, keepdims=True), patches.std(axis=2, keepdims=True)
    target = unit(masking.unpatchify(0.5 + 0.2 * (patches - mean) / (std + 1e-3), patch, image.shape[:2]))
    return [
        Panel(image, "a random crop"),
        Panel(hide(image, batch["masked"][0], grid), "a random quarter of the patches: all that the encoder sees"),
        Panel(hide(target, batch["visible"][0], grid), "what the decoder predicts: the others, each normalized"),
    ]


def ccmim() -> list[Panel]:
    """Two photographs: what the encoder attends to, and the mask that follows; beside it a random one."""
    kept, panels = json.loads(IMPORTANCE.read_text())["importance"], []
    for name in PHOTOGRAPHS[:2]:
        image, importance = photograph(name) / 255.0, np.array(kept[name], np.float32)
        heat = np.kron(importance / importance.max(), np.ones((64, 64)))[..., None]
        panels += [
            Panel(image, "the encoder sees this at 32 x 32 pixels"),
            Panel(0.15 * image + 0.85 * heat, "what its cls token attends to (light)"),
            Panel(hide(image, important(importance), (8, 8)), "the mask: three quarters, by importance and noise"),
            Panel(hide(image, np.random.default_rng(0).permutation(64)[:48], (8, 8)), "a random mask, as MAE has it"),
        ]
    return panels


def important(importance: np.ndarray) -> np.ndarray:
    """The indices of the patches that ccMIM masks at a ratio of 0.75."""
    noise = np.random.default_rng(0).random((1, importance.size), np.float32)
    score = masking.SCORES["importance"](importance.reshape(1, -1), noise)
    return np.asarray(masking.split_by_score(score, importance.size // 4)[1])[0]


def cmae() -> list[Panel]:
    """Both views in their common crop; the online view masked in blocks; the target's, moved and recolored."""
    method = method_of("cmae")
    query, key = method.views
    batch = batch_of(method.views, seed=3)
    common = dataclasses.replace(query, crop=dataclasses.replace(query.crop, size=query.crop.master, master=None))
    down, across = batch["key_shift"][0]
    image = outlined(unit(batch_of([common], seed=3)[query.name]), (0, 0, 223, 223), RED)
    online = hide(unit(batch[query.name]), batch["query_masked"][0], method.encoder.grid)
    return [
        Panel(outlined(image, (across, down, across + 223, down + 223), BLUE), "one crop of 256 pixels, two windows"),
        Panel(online, "online view (red): 2 x 2 patches are masked together, 65 %"),
        Panel(unit(options.float_images(batch, key)), "target's view (blue): moved by up to 31 pixels, recolored"),
    ]


def macrl() -> list[Panel]:
    """Two views, masked and augmented by different amounts."""
    method = method_of("macrl")
    query, key = method.views
    batch, grid = batch_of(method.views, seed=4), method.encoder.grid
    first, second = (unit(options.float_images(batch, view)) for view in (query, key))
    return [
        Panel(first, "query: a strong crop, other colors"),
        Panel(hide(first, batch["query_masked"][0], grid), "75 % of it is masked"),
        Panel(second, "key: a weak crop"),
        Panel(hide(second, batch["key_masked"][0], grid), "50 % of it is masked"),
    ]


def pictures(name: str, captions: dict[str, str], *, seed: int = 0, **fields: Any) -> list[Panel]:
    """Columns of a method's own pictures, for methods whose pictures need no network."""
    method = method_of(name, **fields)

    @jax.jit  # only what these columns need
    def draw(batch: dict[str, Any]) -> dict[str, Any]:
        drawn = method.pictures({}, {}, batch)
        return {column: drawn[column] for column in captions}

    drawn = draw(batch_of(method.views, seed=seed))
    return [Panel(unit(drawn[column]), caption) for column, caption in captions.items()]


def maskco() -> list[Panel]:
    """A region that both views show, masked in one and outlined in the other."""
    captions = {"query": "query", "query_masked": "a region of it is masked: its feature is predicted"}
    batch = batch_of(method_of("maskco").views, seed=5)
    key = unit(options.float_images(batch, method_of("maskco").views[1]))
    panel = Panel(outlined(key, batch["key_boxes"][0, 0], BLUE), "key: the same region (blue) is the right answer")
    return [*pictures("maskco", captions, seed=5), panel]


def saliency_masking() -> list[Panel]:
    """The map, three ways to fill masked cells, and a hard negative."""
    captions = {"query": "query", "query_saliency": "what is salient: blue little, red much (boundaries of color)"}
    one_mask = {"method__focal_p": 0.0, "method__channelwise_p": 0.0, "method__ratio": (0.25, 0.25)}
    panels = pictures("saliency_masking", captions, seed=2)
    for strategy, words in {"blur": "blur", "mean": "the mean color", "high_pass": "noise, all high-passed"}.items():
        caption = {"query_masked": f"masked cells filled with {words}"}
        panels += pictures("saliency_masking", caption, seed=2, method__strategy=strategy, **one_mask)
    caption = {"negative_masked": "hard negative: the key without much of what is salient"}
    return panels + pictures("saliency_masking", caption, seed=2, method__strategy="blur", **one_mask)


def mscn() -> list[Panel]:
    """Both views high-passed and masked at random."""
    captions = {
        "query": "query",
        "query_masked": "high-passed; random cells, per channel, are noise",
        "key": "key",
        "key_masked": "masked likewise, or all but one window is",
    }
    return pictures("mscn", captions, seed=7)


def moco_v2() -> list[Panel]:
    """Query and key, and a few keys of the queue."""
    panels = pictures("moco_v2", {"query": "query", "key": "key, encoded by the EMA encoder"}, seed=1)
    method = method_of("moco_v2")
    queue = np.asarray(options.float_images(batch_of(method.views, PHOTOGRAPHS[1:], seed=1), method.views[1]))
    small = [np.asarray(Image.fromarray(np.uint8(255 * image.clip(0, 1))).resize((112, 112))) / 255 for image in queue]
    rows = np.concatenate([np.concatenate([*small[:2]], axis=1), np.concatenate([small[2], 0 * small[2] + 1], axis=1)])
    return [*panels, Panel(rows, "keys of earlier batches in the queue: the negatives")]


def mocov3() -> list[Panel]:
    """Two views of different augmentation."""
    first, second = (view.name for view in method_of("mocov3").views)
    captions = {first: "first view: always blurred", second: "second view: sometimes blurred or solarized"}
    return pictures("mocov3", captions, seed=6)


def simclr() -> list[Panel]:
    """Two views of three images, and which pairs are positive."""
    method = method_of("simclr")
    batch = batch_of(method.views, PHOTOGRAPHS[:3], seed=8)
    columns = []
    for view in method.views:
        images = np.asarray(options.float_images(batch, view)).clip(0, 1)
        columns.append(np.concatenate([image[::3, ::3] for image in images]))
    views = np.pad(np.concatenate(columns, axis=1), ((0, 0), (37, 38), (0, 0)), constant_values=1.0)
    table = np.full((6, 6, 3), 0.8)
    table[range(6), range(6)] = 1.0
    table[range(6), [3, 4, 5, 0, 1, 2]] = (0.17, 0.63, 0.17)
    table = np.kron(table, np.ones((37, 37, 1)))
    table[::37] = table[:, ::37] = 1.0
    return [
        Panel(views, "two views of three images"),
        Panel(table, "the six views against each other: green is right, gray is wrong"),
    ]


def overview() -> list[Panel]:
    """What six methods hide of one photograph; for the README."""
    image, kept = photograph(PHOTOGRAPHS[0]) / 255.0, json.loads(IMPORTANCE.read_text())["importance"]
    small = np.asarray(Image.fromarray(np.uint8(255 * image)).resize((224, 224))) / 255.0

    def patches(name: str, key: str) -> np.ndarray:
        method = method_of(name)
        batch = batch_of(whole(method.views[:1]))
        return hide(unit(batch[method.views[0].name]), batch[key][0], method.encoder.grid)

    one_mask = {"method__focal_p": 0.0, "method__channelwise_p": 0.0, "method__strategy": "blur"}
    (region,) = pictures("maskco", {"query_masked": "MaskCo: a region, its feature is predicted"}, seed=5)
    (salient,) = pictures(
        "saliency_masking", {"query_masked": "saliency masking: salient cells, blurred"}, seed=2, **one_mask
    )
    return [
        Panel(small, "an image"),
        Panel(patches("mae", "masked"), "MAE: random patches"),
        Panel(hide(image, important(np.array(kept[PHOTOGRAPHS[0]], np.float32)), (8, 8)), "ccMIM: what it attends to"),
        Panel(patches("cmae", "query_masked"), "CMAE: blocks, and a second, unmasked view"),
        region,
        salient,
    ]


FIGURES = {
    "ccmim": ccmim,
    "cmae": cmae,
    "macrl": macrl,
    "maskco": maskco,
    "saliency_masking": saliency_masking,
    "mae": mae,
    "moco_v2": moco_v2,
    "mocov3": mocov3,
    "simclr": simclr,
    "mscn": mscn,
    "overview": overview,
}
COLUMNS = {"ccmim": 4, "saliency_masking": 3, "overview": 3}


# --- Drawing --------------------------------------------------------------------------------------------------------
def draw(panels: Sequence[Panel], columns: int) -> Image.Image:
    """Panels in rows, their captions below."""
    font = ImageFont.load_default(TEXT)
    captions = [textwrap.wrap(panel.caption, 30) for panel in panels]
    lines = max(map(len, captions))
    width, height = SIDE + GAP, SIDE + GAP + lines * LINE
    rows = -(-len(panels) // columns)
    canvas = Image.new("RGB", (GAP + columns * width, GAP + rows * height), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left, top = GAP + i % columns * width, GAP + i // columns * height
        image = Image.fromarray(np.uint8(np.round(255 * panel.image)))
        canvas.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        for j, line in enumerate(caption):
            pen.text((left, top + SIDE + j * LINE), line, fill="black", font=font)
    return canvas


def encoded(canvas: Image.Image) -> bytes:
    """A PNG of as many colors as MOST_BYTES allows."""
    for colors in (256, 128, 64, 32, 16):
        out = io.BytesIO()
        canvas.quantize(colors, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            break
    return out.getvalue()


def figure(name: str) -> bytes:
    """The PNG of one figure."""
    panels = FIGURES[name]()
    return encoded(draw(panels, COLUMNS.get(name, len(panels))))


def measure(workdir: str) -> None:
    """Keeps what the encoder of a ccMIM run attends to in the photographs, summed over heads and blocks."""
    run = restore_run(workdir)
    size = run.config.data.image_size[::-1]
    images = np.stack([np.asarray(Image.fromarray(photograph(name)).resize(size)) for name in PHOTOGRAPHS[:2]])
    attention = run.method.attention(run.state.params, run.method.preprocess(images)).sum(axis=0)
    maps = np.asarray(attention, np.float64).reshape(-1, *run.method.encoder.grid).round(4)
    lines = ",\n    ".join(f'"{n}": {json.dumps(m.tolist())}' for n, m in zip(PHOTOGRAPHS, maps, strict=False))
    made_by = f"python -m maskcl_jax.main --config=configs/ccmim.py, step {run.step}"
    IMPORTANCE.write_text(f'{{\n  "run": "{made_by}",\n  "importance": {{\n    {lines}\n  }}\n}}\n')


def main() -> None:
    """Draws all figures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; all by default")
    parser.add_argument("--workdir", help="a ccMIM run in which the importance is measured again")
    arguments = parser.parse_args()
    if arguments.workdir:
        measure(arguments.workdir)
    for name in arguments.names or FIGURES:
        (FOLDER / f"{name}.png").write_bytes(figure(name))


if __name__ == "__main__":
    main()
