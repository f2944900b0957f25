"""Scenes: four images to a picture for training, one by one for evaluation; COCO, which has no labels."""

import numpy as np
import pytest
from helpers.tiny import tiny
from helpers.views import data_config, view_of
from ml_collections import ConfigDict

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import session
from maskcl_jax.methods import create
from maskcl_jax.training import sharding, throughput
from maskcl_jax.training.monitor import Monitor, closing_rows


def scenes(**fields):
    fixed = {"source": "scenes", "parts": "synthetic", "num_examples": 20, "image_size": (12, 16)}
    return data_config(**fixed | fields)


def test_a_scene_is_four_images_of_the_other_source():
    source, parts = open_source(scenes()), open_source(scenes(source="synthetic")).split("train")
    images, order = source.split("train").images, source.quadrants("train")
    assert images.shape == (20, 24, 32, 3)
    for scene, (a, b, c, d) in zip(images, order, strict=True):
        np.testing.assert_array_equal(scene[:12, :16], parts.images[a])
        np.testing.assert_array_equal(scene[:12, 16:], parts.images[b])
        np.testing.assert_array_equal(scene[12:, :16], parts.images[c])
        np.testing.assert_array_equal(scene[12:, 16:], parts.images[d])
    np.testing.assert_array_equal(np.sort(order, axis=0), np.tile(np.arange(20)[:, None], (1, 4)))
    assert (order[:, 0] != order[:, 1]).mean() > 0.7
    np.testing.assert_array_equal(images, open_source(scenes()).split("train").images)
    assert not np.array_equal(order[:5], source.quadrants("test"))


def test_training_sees_scenes_and_evaluation_their_quadrants():
    config = scenes()
    source = open_source(config)
    assert (source.num_classes, source.num_examples("train"), source.num_examples("test")) == (4, 20, 5)
    assert source.description.startswith("scenes of four: synthetic, 20 training")
    view = view_of((24, 32), scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=False)
    with pipeline.train_batches(source, [view], data_config=config, batch_size=4, seed=0) as batches:
        batch = next(batches)
    np.testing.assert_array_equal(batch["image"], source.split("train").images[batch["index"]])
    assert (batch["label"] == -1).all()
    for split in ("train", "test"):
        parts = open_source(scenes(source="synthetic")).split(split)
        with pipeline.eval_batches(source, split, data_config=config, batch_size=len(parts)) as batches:
            (batch,) = batches
        np.testing.assert_array_equal(batch["image"], parts.images)
        np.testing.assert_array_equal(batch["label"], parts.labels)


@pytest.mark.parametrize("labels", ["all", "2"])
def test_labels_train_on_the_quadrants(tmp_path, labels):
    chosen = ConfigDict({"labels": labels, "seed": 0, "protocol": "linear", "recipe": ""})
    part = session.labeled(open_source(scenes()), chosen, tmp_path)
    whole, train = open_source(scenes(source="synthetic")).split("train"), part.split("train")
    assert len(train) == (20 if labels == "all" else 2 * part.num_classes)
    known = {image.tobytes(): label for image, label in zip(whole.images, whole.labels, strict=True)}
    assert [known[image.tobytes()] for image in train.images] == train.labels.tolist()


def test_scenes_that_cannot_be_made_are_refused(tmp_path):
    for parts in ("scenes", "folder", "imagenet"):
        with pytest.raises(UserError, match=f"parts='{parts}' is unknown: use one of embedded, tfds, npz, synthetic"):
            open_source(scenes(parts=parts))
    with pytest.raises(UserError, match=r"'cifar10' is not prepared in .*: run `tfds build"):
        open_source(scenes(parts="tfds", name="cifar10", data_dir=str(tmp_path)))


@pytest.fixture(scope="module")
def like_coco(tmp_path_factory):
    """A prepared data set with objects and no label, under the name and configuration of COCO."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017")]  # noqa: RUF012

        def _info(self):
            box = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=80)}
            image = {"image": tfds.features.Image(encoding_format="jpeg"), "image/id": np.int64}
            features = tfds.features.FeaturesDict({**image, "objects": tfds.features.Sequence(box)})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            rng = np.random.default_rng(0)
            for i in range(12):
                image = rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
                box = {"bbox": tfds.features.BBox(0.1, 0.1, 0.5, 0.5), "label": i % 80}
                yield i, {"image": image, "image/id": i, "objects": [box] * (i % 3)}

    folder = tmp_path_factory.mktemp("tfds")
    Coco(data_dir=str(folder), config="2017").download_and_prepare()
    return folder


@pytest.mark.parametrize("cache_mb", [64, 0])
def test_coco_is_trained_on_and_has_no_online_evaluation(like_coco, cache_mb, tmp_path):
    c = tiny("maskco")
    coco = {"source": "tfds", "name": "coco/2017", "test_split": "validation", "cache_mb": cache_mb}
    c.data.update({**coco, "data_dir": str(like_coco)})
    source = open_source(c.data)
    assert source.num_classes == 0
    assert source.description.endswith("12 training and 12 test images, no labels")
    with pipeline.train_batches(source, create(c).views, data_config=c.data, batch_size=8, seed=0) as batches:
        batch = next(batches)
    assert (batch["label"] == -1).all()
    assert batch["query_boxes"].shape == (8, 1, 4)
    monitor = Monitor(c, str(tmp_path), source=source, method=create(c), mesh=sharding.create_mesh())
    for _ in ("a finished run, which evaluates nothing", "after an evaluation"):
        closing = closing_rows(c, str(tmp_path), rate=throughput.Throughput(8), skipped=0, monitor=monitor)
        assert closing["k-NN"] == "not measured: the data has no labels"
        assert monitor.classify(None) == {}
