"""Boxes shared by two views: the same place of the image in both, whatever made the views."""

import itertools

import numpy as np
import pytest
from helpers.views import assert_same, data_config, host_batch, view_of
from PIL import Image

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import Arrays, Source, open_source
from maskcl_jax.views import boxes
from maskcl_jax.views.boxes import Boxes
from maskcl_jax.views.crop import Overlap

SHARED = Boxes(shared_with="query", count=3, side=(0.25, 0.5))
VIEWS = [
    view_of((32, 40), name="query", interpolation="bilinear"),
    view_of((40, 32), SHARED, name="key", interpolation="bilinear", overlap=Overlap("query", 0.25)),
]
HEIGHT, WIDTH = 120, 160


class InMemory(Source):
    """Images given as an array."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def num_examples(self, split):
        return len(self.images)

    def load(self, split):
        return Arrays(self.images, np.full(len(self.images), -1, np.int32))


def batches_of(kind, images, folder, count=1, views=VIEWS, threads=2, **options):
    """The first batches of eight, from an array or from PNG files of the same images."""
    config = data_config(source="folder", path=str(folder), threads=threads)
    if kind == "folder":
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:02}.png")
    source = open_source(config) if kind == "folder" else InMemory(images)
    with pipeline.train_batches(source, views, data_config=config, batch_size=8, seed=5, **options) as batches:
        return list(itertools.islice(batches, count))


def ramps(count=8):
    """Images whose red says how far right a pixel is and whose green how far down."""
    down, across = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([across, down, 0 * down], axis=-1).astype(np.uint8)
    return np.tile(image, (count, 1, 1, 1))


def read(image, x, y):
    """Bilinear color at a point, pixel centers at halves."""
    column, row = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    right, below = x - 0.5 - column, y - 0.5 - row
    square = image[row : row + 2, column : column + 2, :2].astype(float)
    return np.array([1 - below, below]) @ np.einsum("j,ijc->ic", [1 - right, right], square)


@pytest.mark.parametrize("kind", ["arrays", "folder"])
def test_a_box_shows_the_same_place_in_both_views(kind, tmp_path):
    (batch,) = batches_of(kind, ramps(), tmp_path)
    mirrored, apart = 0, []  # pixels of the original
    for query, key, ours, theirs in zip(*(batch[k] for k in ("query", "key", "query_boxes", "key_boxes")), strict=True):
        turned = (query[0, 0, 0] > query[0, -1, 0]) != (key[0, 0, 0] > key[0, -1, 0])
        mirrored += turned
        for a, b in zip(ours, theirs, strict=True):
            for left, top in itertools.product((0.2, 0.8), repeat=2):  # inside: the filter is cut at a view's edge
                other = 1 - left if turned else left
                here = read(query, a[0] + left * (a[2] - a[0]), a[1] + top * (a[3] - a[1]))
                there = read(key, b[0] + other * (b[2] - b[0]), b[1] + top * (b[3] - b[1]))
                apart.append(here - there)
    # Levels are whole numbers, in both views: at most 0.7, and none of it to one side.
    assert np.abs(apart).max() < 0.8 and np.sqrt(np.square(apart).mean()) < 0.4
    assert np.abs(np.mean(apart, axis=0)).max() < 0.1
    assert 0 < mirrored < 8


@pytest.mark.parametrize("kind", ["arrays", "folder"])
def test_a_painted_box_is_found_where_the_box_is_said_to_be(kind, tmp_path):
    images = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    (tmp_path / "plain").mkdir(), (tmp_path / "painted").mkdir()
    (plain,) = batches_of(kind, images, tmp_path / "plain")
    crops = host_batch(VIEWS, plain["index"], seed=5, image=(HEIGHT, WIDTH)).crops
    for row, index in enumerate(plain["index"]):
        top, left, h, w, flip = crops["query"][row]
        x0, y0, x1, y1 = plain["query_boxes"][row, 0]
        x0, x1 = (40 - x1, 40 - x0) if flip else (x0, x1)
        x0, x1, y0, y1 = (
            round(v) for v in (left + x0 * w / 40, left + x1 * w / 40, top + y0 * h / 32, top + y1 * h / 32)
        )
        images[index, y0:y1, x0:x1] = 255
    (batch,) = batches_of(kind, images, tmp_path / "painted")
    for view in VIEWS:
        for row, (x0, y0, x1, y1) in enumerate(batch[f"{view.name}_boxes"][:, 0]):
            down, across = np.mgrid[: view.crop.size[0], : view.crop.size[1]] + 0.5
            nearest = np.maximum.reduce([x0 - across, across - x1, y0 - down, down - y1])  # pixels outside, < 0 inside
            crop = crops[view.name][row]
            reach = 1.0 + max(
                view.crop.size[0] / crop[2], view.crop.size[1] / crop[3]
            )  # of the filter, and of rounding to pixels
            painted = batch[view.name][row, ..., 0]
            assert (painted[nearest < -reach] == 255).all()
            assert (painted[nearest > reach] == 0).all()


def test_arrays_and_files_draw_the_same_boxes(tmp_path):
    one, other = (batches_of(kind, ramps(), tmp_path, count=2) for kind in ("arrays", "folder"))
    assert_same([{k: b[k] for k in ("query_boxes", "key_boxes", "index")} for b in one],
                [{k: b[k] for k in ("query_boxes", "key_boxes", "index")} for b in other])  # fmt: skip
    assert set(one[0]) == {"query", "key", "query_boxes", "key_boxes", "label", "index"}
    assert one[0]["key_boxes"].dtype == np.float32


@pytest.mark.parametrize("kind", ["arrays", "folder"])
def test_boxes_depend_on_seed_epoch_and_example_alone(kind, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (17, 40, 50, 3), dtype=np.uint8)
    straight = batches_of(kind, images, tmp_path, count=3)
    assert_same(straight[1:], batches_of(kind, images, tmp_path, count=2, start_step=1, threads=1))
    parts = [batches_of(kind, images, tmp_path, count=3, process_index=i, process_count=2) for i in range(2)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
    assert_same(straight, joined)
    assert len(np.unique(np.concatenate([b["key_boxes"] for b in straight]), axis=0)) == 24


def drawn(shared, count=3000, scale=(0.2, 1.0), size=(480, 640)):
    """(batch with crops, boxes) of many examples."""
    overlap = Overlap("query", shared.side[0])
    views = [
        view_of((224, 224), name="query", scale=scale),
        view_of((224, 224), name="key", scale=scale, overlap=overlap),
    ]
    batch = host_batch(views, range(count), image=size)
    return batch, shared.sample(views[1], batch)


def test_boxes_have_their_sides_and_lie_in_both_views():
    _, found = drawn(Boxes(shared_with="query", count=2, side=(2 / 7, 1 / 2)))
    for name in ("query", "key"):
        assert found[f"{name}_boxes"].min() > -1e-3
        assert found[f"{name}_boxes"].max() < 224 + 1e-3
    sides = found["query_boxes"][..., 2:] - found["query_boxes"][..., :2]
    assert 64 - 1e-2 < sides.min() < 65
    assert 111 < sides.max() < 112 + 1e-2


def test_the_ratio_bounds_wide_ranges_of_sides():
    _, found = drawn(Boxes(shared_with="query", count=2, side=(0.1, 0.9), ratio=(0.5, 3.0)))
    width, height = np.moveaxis(found["query_boxes"][..., 2:] - found["query_boxes"][..., :2], -1, 0)
    assert 0.5 - 1e-3 < (width / height).min() < 0.55
    assert 2.6 < (width / height).max() < 3 + 1e-3


def test_a_key_without_room_is_drawn_again_and_at_last_like_the_query():
    wanted = Boxes(shared_with="query", count=1, side=(2 / 7, 1 / 2))
    batch, _ = drawn(wanted)
    query, key = batch.crops["query"], batch.crops["key"]
    alone = host_batch([view_of((224, 224), name="key")], range(3000)).crops["key"]
    again = (alone[:, :4] != key[:, :4]).any(axis=1)
    assert 0.02 < again.mean() < 0.06  # 3.6 % have no 64 pixels in common, in a simulation of such crops
    assert not (key[:, :4] == query[:, :4]).all(axis=1).any()
    common = boxes.intersection(query, key)
    fraction = (common[:, 2:] - common[:, :2]) / query[:, [3, 2]]
    assert fraction.min() >= 2 / 7
    # Small crops hardly ever meet: then both views show the same.
    batch, found = drawn(wanted, scale=(0.01, 0.02), count=300)
    like = (batch.crops["key"][:, :4] == batch.crops["query"][:, :4]).all(axis=1)
    assert like.mean() > 0.5
    assert found["key_boxes"].min() > -1e-3 and found["key_boxes"].max() < 224 + 1e-3
