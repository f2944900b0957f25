"""Segmentation and evaluations on a data set of TFDS with masks."""

import io

import numpy as np
import pytest
from helpers.segmentation import opened, small_run
from PIL import Image

from maskcl_jax.data.sources import Encoded, open_source
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import batches, session, settings


@pytest.fixture(scope="module")
def run():
    return small_run()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A tfds set `pets` of 30 images with labels and masks, image i of grey value 8 i."""
    tf, tfds = pytest.importorskip("tensorflow"), pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    shape, f = (16, 16), tfds.features
    features = f.FeaturesDict(
        {
            "image": f.Image(shape=(*shape, 3)),
            "label": f.ClassLabel(num_classes=3),
            "segmentation_mask": f.Image(shape=(*shape, 1)),
        }
    )

    def example(i):
        image, mask = np.full((*shape, 3), 8 * i, np.uint8), np.full((*shape, 1), 1 + i % 3, np.uint8)
        return {"image": image, "label": i % 3, "segmentation_mask": mask}

    examples = [example(i) for i in range(30)]
    columns = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    split = tf.data.Dataset.from_tensor_slices(columns)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pets", version="1.0.0", features=features, split_datasets={"train": split}, data_dir=str(folder)
    )
    return str(folder)


def of_tfds(data_dir, *more):
    return ("data.source=tfds", "data.name=pets", f"data.data_dir={data_dir}", "data.test_split=train[:5]", *more)


def test_masks_of_a_tfds_set(run, data_dir, tmp_path):
    pairs = opened(run, tmp_path, *of_tfds(data_dir, "first_label=1")).source
    assert (pairs.num_classes, pairs.num_examples("train"), pairs.num_examples("test")) == (3, 30, 5)
    feed = pairs.eval_batches("train", batch_size=30, process_index=0, process_count=1)
    batch = next(feed)
    feed.close()
    numbers = batch["image"][:, 0, 0, 0] // 8
    assert sorted(numbers) == list(range(30))
    np.testing.assert_array_equal(batch["mask"][:, 5, 5], numbers % 3)
    with pytest.raises(UserError, match="no such feature"):
        opened(run, tmp_path, *of_tfds(data_dir, "mask_key=depth"))


def test_subsets_and_held_out_parts_of_records_too_large_for_memory(run, data_dir, tmp_path):
    streamed = of_tfds(data_dir, "data.cache_mb=0", "data.train_split=train[3:]", "batch_size=8")
    (few,) = settings.create("finetune:small", run.config, overrides=(*streamed, "labels=2"))
    source = session.open_session(run._replace(workdir=str(tmp_path)), few).source
    part = source.split("train")
    assert len(part) == 6
    images = [int(np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0]) // 8 for data in part.payloads]
    np.testing.assert_array_equal(np.array(images) % 3, part.labels)
    assert np.bincount(part.labels).tolist() == [2, 2, 2]
    (whole,) = settings.create("linear", run.config, overrides=of_tfds(data_dir, "data.cache_mb=0", "holdout=0.2"))
    source = open_source(whole.data)
    assert isinstance(source.split("train"), Encoded)
    held = batches.with_holdout(source, whole)
    assert (held.num_examples("train"), held.num_examples("test")) == (24, 6)
