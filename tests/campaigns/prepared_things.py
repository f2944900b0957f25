"""What stands for the placeholders of the documentation's commands: images, masks, data sets, weights, trained runs."""

import io
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Callable

import common
import numpy as np
from helpers import prepared
from helpers.untrained import run_of, write_run
from helpers.weights import STOCK
from PIL import Image

from maskcl_jax.config import load, set_field
from maskcl_jax.data.sources.embedded import photographs
from maskcl_jax.interchange.exporting import export_run

# A pattern of what stands in a word -> where it is, in the folder of prepared things. The first that fits holds.
PLACES = {
    r"(?<=data_dir=)DIR\b": "tensorflow_datasets",
    r"DIR(?=/train-\*\.tar)": "tar",
    r"DIR(?=/(train|val)\b)": "split",
    r"(?<=mask_path=)DIR\b": "masks",
    r"(?<=path=)DIR\b": "split/train",
    r"(?<=path=)LABELED\b": "split/train",
    r"(?<=^--data=)DIR$": "nothing",
    r"(?<=^--out=)DIR$": "DIR",
    r"(?<=list=)FILE\.txt$": "list.txt",
    r"(?<=path=|-out=)FILE\.npz$": "FILE.npz",
    r"^FILE\.npz$": "reference.npz",
    r"^FILE$": "mae/checkpoint.pth",
    r"^mae_pretrain_vit_base_full\.pth$": "mae_b/checkpoint.pth",
    r"\bRUN2$": "RUN2",
    r"\bRUN3$": "RUN3",
    r"\bRUN$": "RUN",
}
RUNS = ("RUN", "RUN2", "RUN3")
IN_WORKSPACE = {"DIR", "FILE.npz", *RUNS}  # written there by commands, or copied
SIDE, PER_CLASS = 96, {"train": 10, "val": 4}
CLASSES = ("astronaut", "chelsea", "coffee", "rocket")  # of the photographs


def prepare(things: pathlib.Path, shortened: Callable[[list[str]], list[str]], environment: dict[str, str]) -> None:
    """Makes everything. shortened: makes a command of a training short."""
    crops = {split: crops_of(split) for split in PER_CLASS}
    write_folders(things, crops)
    write_tars(things / "tar", crops["train"])
    write_data_sets(things / "tensorflow_datasets", crops)
    (things / "nothing").mkdir()
    reference = common.ROOT / "maskcl_jax/verify/reference/boxes.npz"
    (things / "reference.npz").write_bytes(reference.read_bytes())
    write_weights(things / "mae", "Ti/16")
    write_weights(things / "mae_b", "B/16")
    write_run(things / "resnet", "moco_v2", **STOCK | {"model.depth": 18})
    for seed, name in enumerate(RUNS):
        config = f"--config=configs/mae.py:folder,path={things / 'split/train'},seed={seed}"
        words = shortened(["python", "-m", "maskcl_jax.main", config, f"--workdir={things / name}"])
        subprocess.run(
            [sys.executable, *words[1:]], cwd=common.ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
        )


def crops_of(split: str) -> list[tuple[Image.Image, int]]:
    """(a crop of a photograph, its class), in turn of all classes."""
    rng, found = np.random.default_rng(len(split)), []
    by_name = {file.stem: Image.open(file).convert("RGB") for file in photographs()}
    for _ in range(PER_CLASS[split]):
        for label, name in enumerate(CLASSES):
            photograph = by_name[name]
            x, y = (int(rng.integers(side - SIDE)) for side in photograph.size)
            found.append((photograph.crop((x, y, x + SIDE, y + SIDE)), label))
    return found


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image file."""
    opened = io.BytesIO()
    image.save(opened, kind)
    return opened.getvalue()


def write_folders(things: pathlib.Path, crops: dict[str, list[tuple[Image.Image, int]]]) -> None:
    """JPEGs in split/SPLIT/CLASS, a mask for each of those of train, and a list of them."""
    lines = []
    for split, pairs in crops.items():
        for number, (image, label) in enumerate(pairs):
            path = things / "split" / split / CLASSES[label] / f"{number:03d}.jpg"
            mask = things / "masks" / CLASSES[label] / f"{number:03d}.png"
            for file in (path, mask):
                file.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image, "JPEG"))
            if split == "train":
                bright = np.asarray(image.convert("L")) > 127
                Image.fromarray(bright.astype(np.uint8)).save(mask)
                lines.append(f"{path}\t{CLASSES[label]}\n")
    (things / "list.txt").write_text("".join(lines))


def write_tars(folder: pathlib.Path, pairs: list[tuple[Image.Image, int]]) -> None:
    """Two tar files with labels."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for number, (image, label) in enumerate(pairs[shard::2]):
                for ending, content in (("jpg", encoded(image, "JPEG")), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard}{number:03d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_data_sets(folder: pathlib.Path, crops: dict[str, list[tuple[Image.Image, int]]]) -> None:
    """A few images as each of the data sets that the pages name."""
    for name, test, side, mode in (
        ("fashion_mnist", "test", 28, "L"),
        ("cifar10", "test", 32, "RGB"),
        ("imagenet2012", "validation", 0, "RGB"),
    ):
        splits = {}
        for split, pairs in (("train", crops["train"]), (test, crops["val"])):
            images = [(image.resize((side, side)) if side else image).convert(mode) for image, _ in pairs]
            contents = [encoded(image, "PNG" if side else "JPEG") for image in images]
            examples = [{"image": c, "label": label} for c, (_, label) in zip(contents, pairs, strict=True)]
            splits[split] = [examples]
        shape = (side, side, len(mode)) if side else (-1, -1, 3)
        prepared.write(folder / name, splits, shape=shape, class_names=CLASSES)


def write_weights(folder: pathlib.Path, variant: str) -> None:
    """A whole MAE of one block as its authors save it, checkpoint.pth."""
    config = load("mae", f"folder,variant={variant}")
    for field, value in {"model.depth": 1, "method.decoder.depth": 1, "data.image_size": "64x64"}.items():
        set_field(config, field, value, written=field)
    export_run(run_of(config), "mae", str(folder), full=True, check=False)
