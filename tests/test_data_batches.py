"""The promises of the pipeline: batch n is a function of (config, seed, n); evaluation sees every image once."""

import itertools
import pathlib
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from PIL import Image

from maskcl_jax.data import crops, masks, order, pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.views import PatchMask, Photometric, View

VIEWS = [
    View(name="query", size=(16, 16), mask=PatchMask(kind="random", num_patches=16, num_visible=4)),
    View(name="key", size=(16, 24), mask=PatchMask(kind="noise", num_patches=24, num_visible=6)),
]


def data_config(**fields):
    fixed = {"source": "", "name": "", "data_dir": "", "path": "", "test_path": "", "channels": 3}
    splits = {"train_split": "train", "test_split": "test", "eval_resize": 1.0, "cache_mb": 2048, "threads": 0}
    sizes = {"image_size": (32, 32), "num_examples": 64, "num_classes": 4}
    return ml_collections.ConfigDict(fixed | splits | sizes | fields)


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


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


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
    np.testing.assert_array_equal(epochs[0], order.epoch_order(22, 3, 0)[:16])  # step 0 is the first batch
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_a_broken_image_is_replaced_counted_and_named(source_and_config, folder):
    source, config = source_and_config
    if config.source != "folder":
        pytest.skip("only files can be broken")
    batches = take(4, source, config)
    bad = source.split("train").payloads.index(str(folder / "a" / "10.jpg"))
    assert all(bad not in batch["index"] for batch in batches)
    asked = np.concatenate([order.epoch_order(23, 3, epoch)[:16] for epoch in range(2)])
    got = np.concatenate([batch["index"] for batch in batches])
    assert bad in asked  # else this test shows nothing: choose another seed
    assert np.array_equal(np.flatnonzero(asked != got), np.flatnonzero(asked == bad))
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
    for choose in (order.subset, order.spread_runs):
        chosen = choose(1000, 100)
        assert len(set(chosen)) == 100
        assert np.array_equal(chosen, np.sort(chosen))
        assert np.array_equal(chosen, choose(1000, 100))
        assert np.histogram(chosen, 10, (0, 1000))[0].min() >= 4
        assert np.array_equal(choose(7, 0), np.arange(7))


def test_masks_are_permutations_and_differ_between_images_views_and_epochs():
    mask = PatchMask(kind="random", num_patches=49, num_visible=12)
    view = View(size=(28, 28), mask=mask)

    def draw(view=view, epoch=0, indices=range(64)):
        out = masks.draw(view, seed=0, epoch=epoch, indices=np.array(indices))
        return np.concatenate([out[view.key("visible")], out[view.key("masked")]], axis=1)

    order_of = draw()
    assert np.array_equal(np.sort(order_of, axis=1), np.tile(np.arange(49), (64, 1)))
    assert len({tuple(row[:12]) for row in order_of}) == 64
    assert not np.array_equal(order_of, draw(epoch=1))
    assert not np.array_equal(order_of, draw(View(name="key", size=(28, 28), mask=mask)))
    np.testing.assert_array_equal(draw(indices=[5, 63, 5]), order_of[[5, 63, 5]])  # of the index alone
    visible = np.bincount(draw(indices=range(4000))[:, :12].ravel(), minlength=49)
    assert abs(visible / 4000 - 12 / 49).max() < 0.035  # five standard deviations


def test_crops_follow_the_closed_form():
    view = View(size=(32, 32), crop_scale=(0.2, 0.6))
    height, width = 1000, 1000
    draws = crops.draw(view, seed=1, epoch=0, indices=np.arange(20000))
    top, left, h, w = crops.box(view, draws.noise, height, width).T
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
    assert abs(draws.flip.mean() - 0.5) < 0.018
    unflipped = View(size=(32, 32), flip=False)
    assert not crops.draw(unflipped, seed=1, epoch=0, indices=np.arange(50)).flip.any()


def test_a_crop_that_never_fits_is_the_centre_with_the_ratio_clamped():
    noise = np.full((1, crops.ATTEMPTS, 4), 0.999)
    view = View(size=(32, 32), crop_scale=(0.9, 1.0))
    assert crops.box(view, noise, 30, 300).tolist() == [[0, 130, 30, 40]]
    assert crops.box(view, noise, 300, 30).tolist() == [[130, 0, 40, 30]]


def test_the_fixed_view_is_whole_or_the_centre():
    noise = np.zeros((1, crops.ATTEMPTS, 4))
    assert crops.box(crops.EvalView(size=(32, 32)), noise, 40, 50).tolist() == [[0, 0, 40, 50]]
    centre = crops.EvalView(size=(224, 224), resize=256 / 224)
    assert crops.box(centre, noise, 256, 512).tolist() == [[16, 144, 224, 224]]


def test_a_batch_too_large_or_not_divisible_is_refused():
    config = data_config(source="synthetic", num_examples=22)
    source = open_source(config)
    assert pipeline.steps_per_epoch(source, 5) == 4
    with pytest.raises(UserError, match=r"batch_size=23 .* 22 training images"):
        pipeline.steps_per_epoch(source, 23)
    with pytest.raises(UserError, match=r"batch_size=5 .* 2 processes"):
        pipeline.train_batches(source, VIEWS, data_config=config, batch_size=5, seed=0, process_count=2)
    with pytest.raises(UserError, match="interpolation='cubic'"):
        pipeline.train_batches(
            source, [View(size=(8, 8), interpolation="cubic")], data_config=config, batch_size=5, seed=0
        )


def test_an_error_in_the_background_reaches_the_loop():
    config = data_config(source="synthetic", num_examples=22)
    view = View(size=(8, 8), mask=PatchMask(kind="blocks", num_patches=4, num_visible=1))
    with (
        pipeline.train_batches(open_source(config), [view], data_config=config, batch_size=5, seed=0) as batches,
        pytest.raises(UserError, match="mask kind 'blocks'"),
    ):
        next(batches)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels(channels):
    config = data_config(source="synthetic", num_examples=22, image_size=(16, 16), channels=channels)
    assert take(1, open_source(config), config)[0]["query"].shape == (8, 16, 16, channels)


def test_only_tfds_needs_tensorflow(folder):
    root = pathlib.Path(__file__).parents[1]
    program = (
        "import sys; sys.modules['tensorflow'] = None; sys.path.insert(0, 'tests')\n"
        "from test_data_batches import *\n"
        "import maskcl_jax.data.sources.tfds\n"
        "for kind in ('synthetic', 'embedded', 'folder'):\n"
        "    config = data_config(source=kind, path=sys.argv[1])\n"
        "    print(take(1, open_source(config), config)[0]['query'].shape)\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split("\n")[:3] == ["(8, 16, 16, 3)"] * 3, ran.stderr


MASTER = {"crop": "master", "master": (20, 24)}
SHIFTED = [
    View(name="query", size=(16, 16), **MASTER),
    View(name="key", size=(16, 16), shift=4, photometric=Photometric(), **MASTER),
    View(name="whole", size=(20, 24), crop="master"),
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
    assert set(several[0]) == {"query", "key", "whole", "key_photometric", "key_shift", "label", "index"}
    for batch in several:
        np.testing.assert_array_equal(batch["query"], batch["whole"][:, :16, :16])
        for whole, key, (down, across) in zip(batch["whole"], batch["key"], batch["key_shift"], strict=True):
            np.testing.assert_array_equal(key, whole[down : down + 16, across : across + 16])
    assert len({tuple(shift) for batch in several for shift in batch["key_shift"]}) > 3


def test_shifts_are_uniform_and_of_both_ends():
    shifts = crops.draw_shift(SHIFTED[1], seed=0, epoch=0, indices=np.arange(5000))
    for axis in (0, 1):
        counts = np.bincount(shifts[:, axis], minlength=5)
        assert len(counts) == 5
        assert abs(counts / 5000 - 0.2).max() < 0.03
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.06


def test_blocks_are_hidden_whole():
    mask = PatchMask(kind="random", num_patches=24, num_visible=8, block=2, grid=(4, 6))
    drawn = masks.draw(View(size=(8, 12), mask=mask), seed=0, epoch=0, indices=np.arange(200))
    visible = np.zeros((200, 24), bool)
    np.put_along_axis(visible, drawn["visible"], True, axis=1)
    cells = visible.reshape(200, 2, 2, 3, 2).sum(axis=(2, 4))
    assert set(cells.ravel()) == {0, 4}
    assert ((cells == 4).sum(axis=(1, 2)) == 2).all()
    together = np.concatenate([drawn["visible"], drawn["masked"]], axis=1)
    np.testing.assert_array_equal(np.sort(together, axis=1), np.tile(np.arange(24), (200, 1)))
    assert abs((cells == 4).mean(axis=0) - 1 / 3).max() < 0.12
