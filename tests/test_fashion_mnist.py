"""A real data set of TFDS, Fashion-MNIST: ours against tensorflow-datasets, and without TensorFlow."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers.views import assert_same, data_config, view_of

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.data.sources.tfds import Prepared
from maskcl_jax.views.patch_mask import PatchMask

TFDS = pathlib.Path(__file__).parents[2] / "shared" / "tfds"
needs_fashion_mnist = pytest.mark.skipif(
    not (TFDS / "fashion_mnist").is_dir(), reason=f"Fashion-MNIST is not prepared in {TFDS}"
)

pytestmark = pytest.mark.usefixtures("own_cache")


def fashion_mnist(**fields):
    fixed = {"source": "tfds", "name": "fashion_mnist", "data_dir": str(TFDS), "image_size": (28, 28), "channels": 1}
    return data_config(**fixed | {"train_split": "test[:2000]", "test_split": "test[5000:5300]", "threads": 2} | fields)


@needs_fashion_mnist
@pytest.mark.parametrize("cache_mb", [64, 0])
def test_fashion_mnist_is_that_of_tfds(cache_mb):
    tfds = pytest.importorskip("tensorflow_datasets")
    config = fashion_mnist(cache_mb=cache_mb)
    truth = list(tfds.load("fashion_mnist", split=config.test_split, data_dir=TFDS, download=False).as_numpy_iterator())
    source = open_source(config)
    assert source.class_names[0] == "T-shirt/top"
    with pipeline.eval_batches(source, "test", data_config=config, batch_size=300) as batches:
        (batch,) = batches
    np.testing.assert_array_equal(batch["image"], [example["image"] for example in truth])
    np.testing.assert_array_equal(batch["label"], [example["label"] for example in truth])


@needs_fashion_mnist
def test_fashion_mnist_gives_the_same_batches_from_both_formats(tmp_path):
    """The same records, written by array_record's own writer."""
    from array_record.python.array_record_module import ArrayRecordWriter

    config = fashion_mnist(train_split="test[:1000]", cache_mb=0)
    old = Prepared("fashion_mnist", str(TFDS)).folder
    new = tmp_path / "fashion_mnist" / old.name
    new.mkdir(parents=True)
    info = json.loads((old / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    for split in info["splits"]:
        split.pop("filepathTemplate", None)
    (new / "dataset_info.json").write_text(json.dumps(info))
    for file in ("features.json", "label.labels.txt"):
        (new / file).write_text((old / file).read_text())
    whole = Prepared("fashion_mnist", str(TFDS)).records("test", field="data.test_split")
    writer = ArrayRecordWriter(str(new / "fashion_mnist-test.array_record-00000-of-00001"), "group_size:1")
    for record in whole:
        writer.write(record)
    writer.close()

    def take(data_dir, cache_mb):
        config.data_dir, config.cache_mb = str(data_dir), cache_mb
        views = [view_of((24, 24), PatchMask(kind="random", num_patches=36, num_visible=9))]
        feed = pipeline.train_batches(
            open_source(config), views, data_config=config, batch_size=256, seed=1, start_step=2
        )
        with feed:
            return [next(feed) for _ in range(3)]

    for cache_mb in (0, 64):
        assert_same(take(TFDS, cache_mb), take(tmp_path, cache_mb))


@needs_fashion_mnist
def test_split_boundaries_are_those_of_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    ours = Prepared("fashion_mnist", str(TFDS))
    theirs = tfds.builder_from_directory(ours.folder).info.splits
    for text in (
        "train[:1%]",
        "train[33%:77%]",
        "test[-7%:]",
        "train[10:-5%]",
        "test[12.5%:]",
        "train[:3] + test[99%:]",
    ):
        want = [
            (i.splitname, i.from_ or 0, theirs[i.splitname].num_examples if i.to is None else i.to)
            for i in tfds.core.ReadInstruction.from_spec(text).to_absolute(theirs)
        ]
        assert ours.ranges(text, field="data.train_split") == want, text


@needs_fashion_mnist
def test_nothing_of_tensorflow_is_imported():
    program = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['tensorflow_datasets'] = None\n"
        "sys.path.insert(0, 'tests')\n"
        "import test_fashion_mnist\n"
        "config = test_fashion_mnist.fashion_mnist()\n"
        "print(len(test_fashion_mnist.open_source(config).split('test').images))\n"
    )
    root = pathlib.Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "300\n", ran.stderr
