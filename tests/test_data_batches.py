"""The promises of the pipeline: batch n is a function of (config, seed, n); evaluation sees every image once."""

import io
import itertools
import os
import pathlib
import tarfile

import numpy as np
import pytest
from helpers.views import assert_same, data_config, host_batch, sampled, view_of
from PIL import Image

from maskcl_jax.data import order, pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.views.base import Ingredient, View, batch_shapes, describe
from maskcl_jax.views.block_mask import BlockMask
from maskcl_jax.views.color import Color
from maskcl_jax.views.crop import ATTEMPTS, CenterCrop
from maskcl_jax.views.patch_mask import PatchMask

VIEWS = [
    view_of((16, 16), PatchMask(kind="random", num_patches=16, num_visible=4), name="query"),
    view_of((16, 24), PatchMask(kind="noise", num_patches=24, num_visible=6), name="key"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of JPEGs of several sizes, 23 images; number 5 of class a is cut in half."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(23):
        path = root / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + i, 30), Image.Resampling.BICUBIC).save(path, quality=90)
    bad = root / "a" / "10.jpg"
    bad.write_bytes(bad.read_bytes()[:400])
    return root


@pytest.fixture(scope="module", params=["synthetic", "folder"])
def source_and_config(request, folder):
    if request.param == "synthetic":
        config = data_config(source="synthetic", num_examples=22, image_size=(16, 16), threads=2)
    else:
        config = data_config(source="folder", path=str(folder), test_path=str(folder), image_size=(16, 16), threads=2)
    return open_source(config), config


def take(count, source, config, *, batch_size=8, seed=3, **options):
    with pipeline.train_batches(
        source, VIEWS, data_config=config, batch_size=batch_size, seed=seed, **options
    ) as batches:
        return list(itertools.islice(batches, count))


def test_batches_have_the_keys_shapes_and_types_of_the_contract(source_and_config):
    (batch,) = take(1, *source_and_config)
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
        "query": ((8, 16, 16, 3), "uint8"),
        "key": ((8, 16, 24, 3), "uint8"),
        "query_visible": ((8, 4), "int32"),
        "query_masked": ((8, 12), "int32"),
        "key_mask_noise": ((8, 24), "float32"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
    }


def test_resuming_at_a_step_gives_the_same_batches(source_and_config):
    straight = take(6, *source_and_config)  # two steps an epoch: three epochs
    assert_same(straight[3:], take(3, *source_and_config, start_step=3))
    assert not np.array_equal(straight[0]["query"], straight[2]["query"])  # a new order, new crops
    assert not np.array_equal(straight[0]["query"], take(1, *source_and_config, seed=4)[0]["query"])


def test_threads_change_nothing(source_and_config):
    source, config = source_and_config
    single = config.copy_and_resolve_references()
    single.threads = 1
    assert_same(take(3, source, config), take(3, source, single))


def test_slices_of_two_processes_make_the_batch_of_one():
    config = data_config(source="synthetic", num_examples=22, image_size=(16, 16))
    source = open_source(config)
    parts = [take(4, source, config, process_index=i, process_count=2) for i in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    assert_same(take(4, source, config), joined)


def test_an_epoch_never_repeats_an_image():
    config = data_config(source="synthetic", num_examples=22, image_size=(16, 16))
    epochs = np.stack([b["index"] for b in take(4, open_source(config), config)]).reshape(2, 16)
    np.testing.assert_array_equal(
        epochs[0], order.TrainOrder(22, batch_size=8, seed=3).epoch(0)[:16]
    )  # step 0 is the first batch
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_a_broken_image_is_replaced_counted_and_named(source_and_config, folder):
    source, config = source_and_config
    if config.source != "folder":
        pytest.skip("only files can be broken")
    batches = take(4, source, config)
    bad = source.split("train").payloads.index(str(folder / "a" / "10.jpg"))
    assert all(bad not in batch["index"] for batch in batches)
    epochs = [order.TrainOrder(23, batch_size=8, seed=3).epoch(epoch) for epoch in range(2)]
    expected = np.concatenate([epoch[:16] for epoch in epochs])
    got = np.concatenate([batch["index"] for batch in batches])
    (place,) = np.flatnonzero(expected == bad)  # else this test shows nothing: choose another seed
    expected[place] = epochs[place // 16][place % 16 + 1]  # the next of the epoch
    np.testing.assert_array_equal(got, expected)
    names = [source.split("train").payloads[i] for i in got]
    assert [name.split("/")[-2] for name in names] == ["ab"[b] for batch in batches for b in batch["label"]]
    assert list(source.skipped) == [str(folder / "a" / "10.jpg")]


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 10, 46])
def test_evaluation_covers_every_image_once(folder, batch_size, process_count):
    config = data_config(source="folder", path=str(folder), test_path=str(folder), image_size=(16, 16), threads=2)
    source = open_source(config)
    counts, index, valid, label = [], [], [], []
    for process in range(process_count):
        with pipeline.eval_batches(
            source,
            "test",
            data_config=config,
            batch_size=batch_size,
            process_index=process,
            process_count=process_count,
        ) as batches:
            batches = list(batches)
        assert all(batch["image"].shape == (batch_size // process_count, 16, 16, 3) for batch in batches)
        counts.append(len(batches))
        for name, out in (("index", index), ("valid", valid), ("label", label)):
            out += [batch[name] for batch in batches]
    index, valid, label = map(np.concatenate, (index, valid, label))
    assert len(set(counts)) == 1
    assert sorted(index[index >= 0]) == list(range(23))
    split = source.split("test")
    assert [split.payloads[i] for i in index[(index >= 0) & ~valid]] == [str(folder / "a" / "10.jpg")]
    np.testing.assert_array_equal(label[index >= 0], split.labels[index[index >= 0]])
    assert (label[index < 0] == -1).all()
    assert not valid[index < 0].any()


def test_limit_takes_a_fixed_subset_spread_over_the_split():
    chosen = order.subset(1000, 100)
    assert len(set(chosen)) == 100
    assert np.array_equal(chosen, np.sort(chosen))
    assert np.array_equal(chosen, order.subset(1000, 100))
    assert np.histogram(chosen, 10, (0, 1000))[0].min() >= 4
    assert np.array_equal(order.subset(7, 0), np.arange(7))


def test_masks_are_permutations_and_differ_between_images_views_and_epochs():
    mask = PatchMask(kind="random", num_patches=49, num_visible=12)
    view = view_of((28, 28), mask)

    def draw(view=view, epoch=0, indices=range(64)):
        out = sampled(view, indices, epoch=epoch)
        return np.concatenate([out[view.key("visible")], out[view.key("masked")]], axis=1)

    order_of = draw()
    assert np.array_equal(np.sort(order_of, axis=1), np.tile(np.arange(49), (64, 1)))
    assert len({tuple(row[:12]) for row in order_of}) == 64
    assert not np.array_equal(order_of, draw(epoch=1))
    assert not np.array_equal(order_of, draw(view_of((28, 28), mask, name="key")))
    np.testing.assert_array_equal(draw(indices=[5, 63, 5]), order_of[[5, 63, 5]])  # of the index alone
    visible = np.bincount(draw(indices=range(4000))[:, :12].ravel(), minlength=49)
    assert abs(visible / 4000 - 12 / 49).max() < 0.035  # five standard deviations


def test_crops_follow_the_closed_form():
    view = view_of((32, 32), scale=(0.2, 0.6))
    height, width = 1000, 1000
    top, left, h, w, flip = host_batch([view], range(20000), seed=1, image=(height, width)).crops["image"].T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    area, ratio = h * w / (height * width), w / h
    # Every attempt fits here (0.6 * 4/3 < 1): the area is uniform, the logarithm of the ratio as well.
    assert abs(area.mean() - 0.4) < 5 * (0.4 / 12**0.5) / 20000**0.5
    assert abs(area.std() - 0.4 / 12**0.5) < 0.002
    spread = 2 * np.log(4 / 3)
    assert abs(np.log(ratio).mean()) < 5 * (spread / 12**0.5) / 20000**0.5
    assert abs(np.log(ratio).std() - spread / 12**0.5) < 0.003
    assert ratio.min() > 0.745 and ratio.max() < 1.343
    np.testing.assert_allclose(np.mean(top / (height - h)), 0.5, atol=0.012)
    assert abs(flip.mean() - 0.5) < 0.018
    unflipped = host_batch([view_of((32, 32), flip=False)], range(50), seed=1)
    assert not unflipped.crops["image"][:, 4].any()


class Fixed:
    """A batch whose uniform numbers are all alike."""

    xp = np

    def __init__(self, number):
        self.number = number

    def uniform(self, stream, shape=(), dtype=np.float32):
        return np.full((1, *shape), self.number, dtype)


def test_a_crop_that_never_fits_is_the_center_with_the_ratio_clamped():
    assert ATTEMPTS == 10
    view = view_of((32, 32), scale=(0.9, 1.0))
    assert view.crop.sample(view, Fixed(0.999), 30, 300).tolist() == [[0, 130, 30, 40, 0]]
    assert view.crop.sample(view, Fixed(0.999), 300, 30).tolist() == [[130, 0, 40, 30, 0]]


def test_the_fixed_view_is_whole_or_the_center():
    whole = CenterCrop(size=(32, 32))
    assert whole.sample(View(crop=whole), Fixed(0.0), 40, 50).tolist() == [[0, 0, 40, 50, 0]]
    center = CenterCrop(size=(224, 224), resize=256 / 224)
    assert center.sample(View(crop=center), Fixed(0.0), 256, 512).tolist() == [[16, 144, 224, 224, 0]]


def test_a_batch_too_large_or_not_divisible_is_refused():
    config = data_config(source="synthetic", num_examples=22)
    source = open_source(config)
    assert pipeline.steps_per_epoch(source, 5) == 4
    with pytest.raises(UserError, match=r"batch_size=23 .* 22 training images"):
        pipeline.steps_per_epoch(source, 23)
    with pytest.raises(UserError, match=r"batch_size=5 .* 2 processes"):
        pipeline.train_batches(source, VIEWS, data_config=config, batch_size=5, seed=0, process_count=2)


class Broken(Ingredient):
    """An ingredient that fails."""

    def entries(self, view, channels):
        return {}

    def sample(self, view, batch):
        raise UserError("this ingredient is broken")


def test_an_error_in_the_background_reaches_the_loop():
    config = data_config(source="synthetic", num_examples=22)
    options = {"data_config": config, "batch_size": 5, "seed": 0}
    with (
        pipeline.train_batches(open_source(config), [view_of((8, 8), Broken())], **options) as batches,
        pytest.raises(UserError, match="this ingredient is broken"),
    ):
        next(batches)
    with pytest.raises(ValueError, match="kind='blocks' of a PatchMask"):
        PatchMask(kind="blocks", num_patches=4, num_visible=1)


def test_batches_may_be_closed_twice():
    config = data_config(source="synthetic", num_examples=22, image_size=(16, 16))
    batches = pipeline.train_batches(open_source(config), VIEWS, data_config=config, batch_size=8, seed=0)
    next(batches)
    batches.close()
    batches.close()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_memory_is_flat_over_20_000_files(tmp_path, kind):
    """15,000 files are read between the two measurements."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "BMP")
    (tmp_path / "0.bmp").write_bytes(content.getvalue())
    if kind == "folder":
        for i in range(1, 20_000):
            os.link(tmp_path / "0.bmp", tmp_path / f"{i}.bmp")
        config = data_config(source="folder", path=str(tmp_path), threads=2)
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as file:
            for i in range(2_000):
                file.add(tmp_path / "0.bmp", f"{i}.bmp")
        for i in range(9):
            os.link(tmp_path / "a.tar", tmp_path / f"{i}.tar")
        config = data_config(source="tar", path=str(tmp_path), threads=2)
    source = open_source(config)
    assert source.num_examples("train") == 20_000
    with pipeline.train_batches(source, [view_of((8, 8))], data_config=config, batch_size=500, seed=0) as batches:
        for _ in range(10):
            next(batches)
        before = resident()
        for _ in range(30):
            next(batches)
        grown = resident() - before
    assert grown < 20 * 2**20  # 15,000 files of 12 kB are 185 MB


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels(channels):
    config = data_config(source="synthetic", num_examples=22, image_size=(16, 16), channels=channels)
    assert take(1, open_source(config), config)[0]["query"].shape == (8, 16, 16, channels)


MASTER = {"shared": "master", "master": (20, 24)}
SHIFTED = [
    view_of((16, 16), name="query", **MASTER),
    view_of((16, 16), Color(), name="key", shift=4, **MASTER),
    view_of((20, 24), name="whole", shared="master"),
]


@pytest.mark.parametrize("kind", ["synthetic", "folder"])
def test_shifted_views_are_windows_of_one_crop(kind, tmp_path):
    config = data_config(source=kind, num_examples=22, path=str(tmp_path))
    if kind == "folder":
        rng = np.random.default_rng(0)
        for i in range(22):
            Image.fromarray(rng.integers(0, 256, (30, 34, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    with pipeline.train_batches(
        open_source(config), SHIFTED, data_config=config, batch_size=8, seed=0, start_step=1
    ) as batches:
        several = [next(batches) for _ in range(3)]
    assert set(several[0]) == {"query", "key", "whole", "key_color", "key_shift", "label", "index"}
    for batch in several:
        np.testing.assert_array_equal(batch["query"], batch["whole"][:, :16, :16])
        for whole, key, (down, across) in zip(batch["whole"], batch["key"], batch["key_shift"], strict=True):
            np.testing.assert_array_equal(key, whole[down : down + 16, across : across + 16])
    assert len({tuple(shift) for batch in several for shift in batch["key_shift"]}) > 3


def test_shifts_are_uniform_and_of_both_ends():
    shifts = SHIFTED[1].crop.sample_shift(SHIFTED[1], host_batch(SHIFTED, range(5000)))
    for axis in (0, 1):
        counts = np.bincount(shifts[:, axis], minlength=5)
        assert len(counts) == 5
        assert abs(counts / 5000 - 0.2).max() < 0.03
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.06


def test_blocks_are_hidden_whole():
    mask = PatchMask(kind="random", num_patches=24, num_visible=8, block=2, grid=(4, 6))
    drawn = sampled(view_of((8, 12), mask), range(200))
    visible = np.zeros((200, 24), bool)
    np.put_along_axis(visible, drawn["visible"], True, axis=1)
    cells = visible.reshape(200, 2, 2, 3, 2).sum(axis=(2, 4))
    assert set(cells.ravel()) == {0, 4}
    assert ((cells == 4).sum(axis=(1, 2)) == 2).all()
    together = np.concatenate([drawn["visible"], drawn["masked"]], axis=1)
    np.testing.assert_array_equal(np.sort(together, axis=1), np.tile(np.arange(24), (200, 1)))
    assert abs((cells == 4).mean(axis=0) - 1 / 3).max() < 0.12


def test_block_masks_have_ratios_of_their_own_and_are_made_of_rectangles():
    mask = BlockMask(grid=(14, 14), ratio=(0.2, 0.6), min_patches=9)
    masked = sampled(view_of((224, 224), mask), range(2000))["block_mask"].reshape(-1, 14, 14)
    ratio = masked.mean(axis=(1, 2))
    assert ratio.max() <= 0.6
    assert np.quantile(ratio, [0.1, 0.9]) == pytest.approx([0.24, 0.56], abs=0.035)  # of a uniform ratio
    # A patch whose neighbors are all of the other kind is rare among rectangles, and common among independent draws.
    inner, around = (
        masked[:, 1:-1, 1:-1],
        [masked[:, :-2, 1:-1], masked[:, 2:, 1:-1], masked[:, 1:-1, :-2], masked[:, 1:-1, 2:]],
    )
    alone = inner & ~np.any(around, axis=0)
    assert alone.sum() / inner.sum() < 0.002
    assert masked.mean(axis=0).min() > 0.03  # no place is left out, though the center is masked more often
    np.testing.assert_array_equal(
        sampled(view_of((224, 224), mask), [5, 3])["block_mask"].reshape(-1, 14, 14), masked[[5, 3]]
    )


def test_a_block_mask_goes_through_the_pipeline():
    config = data_config(source="synthetic", num_examples=22)
    views = [view_of((8, 8), BlockMask(grid=(4, 4), min_patches=2))]
    with pipeline.train_batches(open_source(config), views, data_config=config, batch_size=6, seed=0) as batches:
        batch = next(batches)
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == batch_shapes(views, 6, 3)
    assert "| `block_mask` | (B, 16) bool | True where a patch is masked" in describe(views, 3)
    twice = [view_of((8, 8), BlockMask(grid=(4, 4)), BlockMask(grid=(2, 2), min_patches=1))]
    with pytest.raises(ValueError, match="two ingredients add the batch key 'block_mask'"):
        batch_shapes(twice, 6, 3)
