"""Writes a data set into one file of decoded images, for `data.source=npz` and `data.on_device`.

    python -m maskcl_jax.data.to_array --data=fashion_mnist --data_dir=DIR --out=fashion_mnist.npz
    python -m maskcl_jax.data.to_array --data=folder --path=DIR --image_size=64x64 --out=mine.npz
    python -m maskcl_jax.main --config=configs/mae.py:fashion_mnist --config.data.source=npz \\
        --config.data.path=fashion_mnist.npz --config.data.on_device=True

Images of one size stay as they are; others are shown as an evaluation shows them (the whole image or its center, see
`data.eval_resize`), at --image_size. An image that cannot be read is left out and named.
"""

import os
import pathlib
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from maskcl_jax import cli
from maskcl_jax import config as config_lib
from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import SPLITS, Arrays, Source, open_source
from maskcl_jax.errors import UserError

DATA = flags.DEFINE_string("data", "", "A data preset of the configs: fashion_mnist, cifar10, folder, embedded, ...")
OUT = flags.DEFINE_string("out", "", "The file to write, .npz.")
FIELDS = {
    "data_dir": "tfds: where the data was prepared.",
    "name": "tfds: another data set than the preset's.",
    "path": "folder: the training images.",
    "test_path": "folder: the test images.",
}
for field, text in FIELDS.items():
    flags.DEFINE_string(field, "", text)
IMAGE_SIZE = flags.DEFINE_string("image_size", "", "HEIGHTxWIDTH of images of several sizes; default: the preset's.")


def main(argv: list[str]) -> None:
    """Reads both splits and writes them."""
    out = pathlib.Path(OUT.value)
    if out.suffix != ".npz":
        raise UserError(f"--out={OUT.value} is no .npz file: name one")
    if out.exists():
        raise UserError(f"--out={out} is already there: remove it, or name another")
    source, data_config = open_data()
    arrays: dict[str, Any] = {"class_names": np.array(source.class_names)} if source.num_classes else {}
    for split in SPLITS:
        if source.num_examples(split):
            images, labels = read_split(source, split, data_config)
            arrays[f"{split}_images"] = images
            if source.num_classes:
                arrays[f"{split}_labels"] = labels
            print(f"{split}: {len(images)} images of {'x'.join(map(str, images.shape[1:]))}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}.npz")
    np.savez(beside, **arrays)
    os.replace(beside, out)
    print(f"wrote {out}, {out.stat().st_size / 2**20:.1f} MiB")


def open_data() -> tuple[Source, Any]:
    """(source, `config.data`) of the flags."""
    if DATA.value not in config_lib.DATA:
        known = ", ".join(config_lib.DATA)
        raise UserError(
            f"--data={DATA.value} is unknown{config_lib.suggestion(DATA.value, config_lib.DATA)}: use {known}"
        )
    config = ml_collections.ConfigDict({"data": config_lib.DEFAULTS["data"] | config_lib.DATA[DATA.value]})
    for field in FIELDS:
        if flags.FLAGS[field].value:
            config.data[field] = flags.FLAGS[field].value
    if IMAGE_SIZE.value:
        config_lib.set_field(config, "data.image_size", IMAGE_SIZE.value, written=f"--image_size={IMAGE_SIZE.value}")
    return open_source(config.data), config.data


def read_split(source: Source, split: str, data_config: Any) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, H, W, C) uint8, labels (N,)) of a split."""
    examples = source.split(split)
    if isinstance(examples, Arrays):
        return examples.images, examples.labels
    images, labels = [], []
    with pipeline.eval_batches(source, split, data_config=data_config, batch_size=256) as batches:
        for batch in batches:
            images.append(batch["image"][batch["valid"]])
            labels.append(batch["label"][batch["valid"]])
    return np.concatenate(images), np.concatenate(labels)


if __name__ == "__main__":
    cli.run(main)
