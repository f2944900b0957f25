"""What the host draws for views, against closed forms: crops, shifts, patch and block masks."""

import numpy as np
import pytest
from helpers.views import data_config, host_batch, sampled, view_of
from PIL import Image

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.views.base import View, batch_shapes, describe
from maskcl_jax.views.block_mask import BlockMask
from maskcl_jax.views.color import Color
from maskcl_jax.views.crop import ATTEMPTS, CenterCrop
from maskcl_jax.views.patch_mask import PatchMask


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
