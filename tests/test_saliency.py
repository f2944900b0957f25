"""Cell masks on the host: the rule and its counts, who says what is salient, the user's maps."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.views import data_config, sampled, view_of
from PIL import Image

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.ops import cells
from maskcl_jax.views import saliency
from maskcl_jax.views.cell_mask import SALIENCY, CellMask, CellRule
from maskcl_jax.views.saliency_maps import SaliencyMaps

RNG = np.random.default_rng(0)
OPTIONS = {"spread": 0.6, "background": True, "cap": None}


@pytest.mark.parametrize(
    ("ratio", "gamma", "total", "salient", "other"),
    [
        (0.05, 0.3, 2, 1, 1),
        (0.10, 0.5, 4, 2, 2),
        (0.15, 0.6, 7, 4, 3),
        (0.20, 0.7, 9, 7, 2),
        (0.25, 0.3, 12, 4, 8),
        (0.25, 0.5, 12, 6, 6),
        (0.25, 0.7, 12, 9, 3),
    ],
)
def test_counts_as_the_released_code_has_them(ratio, gamma, total, salient, other):
    found = np.array([gamma * 49])
    assert [int(n[0]) for n in cells.counts(found, ratio, 49, background=True, cap=None, xp=np)] == [salient, other]
    assert int(49 * ratio) == total == salient + other


def test_no_negative_counts_and_the_cap():
    # round(0.05 * 48) is 2, floor(0.05 * 49) too; round(0.0721 * 49) = 4 where floor says 3: -1 is none.
    salient, other = cells.counts(np.array([48, 49]), np.array([0.05, 0.0721]), 49, background=True, cap=None, xp=np)
    assert (salient.tolist(), other.tolist()) == ([2, 4], [0, 0])
    capped = cells.counts(np.array([40]), np.array([0.7]), 49, background=False, cap=(0.56, 0.55), xp=np)
    assert [int(n[0]) for n in capped] == [27, 0]  # of 28: 0.7 * 40 / 49 = 0.571
    below = cells.counts(np.array([39]), np.array([0.7]), 49, background=False, cap=(0.56, 0.55), xp=np)
    assert int(below[0][0]) == 27  # round(27.3)


def test_salient_cells_keep_their_places():
    activation = np.zeros((1, 4, 4), np.float32)
    activation[0, :, 0] = 1.0  # the first column; the released code finds the last
    activation[0, 2, 1] = 1.0
    np.testing.assert_array_equal(cells.foreground(activation, 0.6, np), activation > 0)
    # Cells less than 0.6 standard deviations below the mean are salient too, and a constant map is all salient.
    # Mean 0.525, std 0.43: from 0.267 on, where the mean alone would leave 0.3 out.
    assert cells.foreground(np.float32([[[0.0, 1.0], [0.8, 0.3]]]), 0.6, np).tolist() == [[[False, True], [True, True]]]
    assert cells.foreground(np.full((1, 7, 7), 0.1, np.float32), 0.6, np).all()


def test_the_same_fraction_of_both_kinds_on_host_and_device():
    activation = RNG.random((64, 7, 7)).astype(np.float32) ** 3
    noise = RNG.random((64, 7, 7, 3)).astype(np.float32)
    ratio = RNG.uniform(0.05, 0.7, 64).astype(np.float32)
    salient = cells.foreground(activation, 0.6, np)
    hidden = cells.choose(activation, noise, ratio, **OPTIONS, xp=np)
    np.testing.assert_array_equal(hidden, cells.choose(*map(jnp.asarray, (activation, noise, ratio)), **OPTIONS))
    of_salient = (hidden & salient[..., None]).sum(axis=(1, 2))
    found = salient.sum(axis=(1, 2))
    np.testing.assert_array_equal(of_salient, np.round(ratio * found).astype(int)[:, None].repeat(3, axis=1))
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2)), (ratio * 49).astype(int)[:, None].repeat(3, axis=1))
    shares = of_salient[:, 0] / found, (hidden & ~salient[..., None]).sum(axis=(1, 2))[:, 0] / (49 - found)
    assert abs(shares[0] - ratio).max() < 0.5 / found.min() + 1e-6
    assert abs(shares[1] - ratio).max() < 1.5 / (49 - found).min() + 1e-6
    # Of each kind the cells of smallest noise.
    for kind in (salient, ~salient):
        for i in range(8):
            chosen, left = noise[i, ..., 0][hidden[i, ..., 0] & kind[i]], noise[i, ..., 0][~hidden[i, ..., 0] & kind[i]]
            assert chosen.max(initial=0.0) <= left.min(initial=1.0)
    negative = cells.choose(activation, noise, ratio, **(OPTIONS | {"background": False}), xp=np)
    assert not (negative & ~salient[..., None]).any()
    np.testing.assert_array_equal((negative & salient[..., None]).sum(axis=(1, 2)), of_salient)


def test_a_window_goes_before_cells():
    window = jnp.asarray([[1, 2, 3, 4], [0, 0, 0, 0]])
    marked = jnp.zeros((2, 2, 2, 1), bool).at[1, 0, 1].set(True)
    kept = np.asarray(cells.hidden_pixels(marked, window, (8, 8), keep_window=True))[..., 0]
    lost = np.asarray(cells.hidden_pixels(marked, window, (8, 8), keep_window=False))[..., 0]
    inside = np.zeros((8, 8), bool)
    inside[1:4, 2:6] = True
    np.testing.assert_array_equal(kept[0], ~inside)
    np.testing.assert_array_equal(lost[0], inside)
    quarter = np.zeros((8, 8), bool)
    quarter[:4, 4:] = True
    np.testing.assert_array_equal(kept[1], quarter)
    np.testing.assert_array_equal(lost[1], quarter)


def view_with(provider="boundary", size=(28, 28), grid=7, name="query", **fields):
    rule = CellRule(**({"name": name, "ratio": (0.05, 0.25)} | fields))
    return view_of(size, CellMask(grid=grid, provider=provider, spread=0.6, rules=(rule,)), name=name)


def test_what_is_drawn_has_the_stated_distribution():
    view = view_with("uniform", focal_p=0.2, window=(25, 24), channelwise_p=0.7, channels=3)
    images = np.zeros((4000, 28, 28, 3), np.uint8)
    b = sampled(view, range(4000), images=images, epoch=1)
    assert {k: (v.shape, v.dtype.name) for k, v in b.items()} == {
        "query_activation": ((4000, 7, 7), "float32"),
        "query_cells": ((4000, 7, 7, 3), "bool"),
        "query_window": ((4000, 4), "int32"),
    }
    focal = b["query_window"][:, 2] > 0
    assert abs(focal.mean() - 0.2) < 0.02
    assert not b["query_cells"][focal].any()
    corners = b["query_window"][focal]
    assert {tuple(w) for w in corners[:, 2:]} == {(25, 24)}
    assert [set(corners[:, i]) for i in (0, 1)] == [{0, 1, 2, 3}, {0, 1, 2, 3, 4}]
    marked = b["query_cells"][~focal]
    alike = (marked == marked[..., :1]).all(axis=(1, 2, 3))
    assert abs(alike.mean() - 0.3) < 0.03
    counts = marked.sum(axis=(1, 2))
    assert (counts == counts[:, :1]).all()
    assert (counts.min(), counts.max()) == (2, 12)
    assert abs(marked.mean(axis=(0, 3)) - marked.mean()).max() < 0.02  # no place is preferred


def test_what_is_drawn_depends_on_the_example_only():
    view = view_with(focal_p=0.5, window=(9, 9), channelwise_p=0.5, channels=3, redraw=True)
    images = RNG.integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)
    whole = sampled(view, range(20), images=images, epoch=1)
    part = sampled(view, [7, 3], images=images[[7, 3]], epoch=1)
    for key, value in whole.items():
        np.testing.assert_array_equal(part[key], value[[7, 3]], err_msg=key)
    other = sampled(view, range(20), images=images, epoch=2)
    assert not np.array_equal(other["query_cells"], whole["query_cells"])
    again = cells.choose(whole["query_activation"], whole["query_noise"], whole["query_ratio"], **OPTIONS, xp=np)
    spatial = whole["query_window"][:, 2] == 0
    np.testing.assert_array_equal(again[spatial], whole["query_cells"][spatial])


def blob(size, grid, channels=3):
    """A textured background with one patch of another colour, and which cells the patch fills."""
    images = RNG.integers(90, 110, (3, size, size, channels)).astype(np.uint8)
    truth, cell = np.zeros((3, grid, grid), bool), size // grid
    for i, (top, left) in enumerate(((1, 2), (3, 0), (2, 3))):
        truth[i, top : top + 3, left : left + 2] = True
        images[i, top * cell : (top + 3) * cell, left * cell : (left + 2) * cell] = 200 if channels == 1 else 30
        if channels == 3:
            images[i, top * cell : (top + 3) * cell, left * cell : (left + 2) * cell, 0] = 180
    return images, truth


@pytest.mark.parametrize(("size", "grid", "channels"), [(32, 8, 3), (224, 7, 3), (56, 7, 1), (24, 8, 4)])
def test_a_blob_on_a_background_stands_out(size, grid, channels):
    images, truth = blob(size, grid, channels)
    activation = saliency.activation(images, grid, "boundary")
    assert activation.shape == (3, grid, grid)
    assert activation.dtype == np.float32
    np.testing.assert_array_equal(cells.foreground(activation, 0.0, np), truth)


def test_every_provider_takes_any_shape():
    for shape in ((2, 16, 48, 1), (2, 24, 32, 4), (2, 8, 8, 3)):
        for provider in saliency.PROVIDERS:
            activation = saliency.activation(RNG.integers(0, 256, shape, dtype=np.uint8), 8, provider)
            assert activation.shape == (2, 8, 8), provider
            assert np.isfinite(activation).all()
    assert set(SALIENCY) == {*saliency.PROVIDERS, "maps"}


def test_flat_pictures_are_all_salient():
    for provider in ("boundary", "uniform"):
        activation = saliency.activation(np.full((2, 32, 32, 3), 77, np.uint8), 8, provider)
        assert cells.foreground(activation, 0.6, np).all(), provider
    centre = saliency.activation(np.zeros((1, 28, 28, 3), np.uint8), 7, "center")[0]
    assert centre.max() == centre[3, 3] == 1.0
    np.testing.assert_allclose(centre[3, 5], np.exp(-0.5), rtol=1e-6)


def test_colours_are_those_of_lab():
    from skimage.color import rgb2lab

    images = RNG.integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    ours = np.stack(saliency._lab([images[..., k].astype(np.float32) for k in range(3)]), axis=-1)
    # skimage's white point and matrix have a digit more or less; the curve is read from a table.
    np.testing.assert_allclose(ours, rgb2lab(images), atol=0.2)


def reflected(x, i, j):
    """A pixel of x, the border reflected without repeating the edge."""
    height, width = x.shape
    i, j = abs(i), abs(j)
    return x[min(i, 2 * height - 2 - i), min(j, 2 * width - 2 - j)]


def filtered(x, weights):
    radius, out = len(weights) // 2, np.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for a in range(-radius, radius + 1):
                for b in range(-radius, radius + 1):
                    out[i, j] += weights[a + radius] * weights[b + radius] * reflected(x, i + a, j + b)
    return out


def test_spectral_residual_step_by_step():
    image = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image[20:30, 40:56] = (250, 10, 10)
    spectrum = np.fft.fft2(image @ np.array([0.299, 0.587, 0.114]))  # 64 pixels: nothing to resize
    amplitude = np.log(np.abs(spectrum))
    residual = amplitude - filtered(amplitude, [1 / 3] * 3)
    back = np.abs(np.fft.ifft2(np.exp(residual) * np.exp(1j * np.angle(spectrum))))
    taps = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 8.0**2))
    salient = filtered(back, taps / taps.sum()) ** 2
    expected = (salient / salient.max()).reshape(8, 8, 8, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(saliency.activation(image[None], 8, "spectral_residual")[0], expected, rtol=2e-3)


def test_resizing_is_torchs_bilinear():
    torch = pytest.importorskip("torch")
    x = RNG.random((2, 20, 33)).astype(np.float32)
    ours = saliency._sampled(saliency._sampled(x, 64, axis=1), 16, axis=2)
    theirs = torch.nn.functional.interpolate(torch.tensor(x)[None], (64, 16), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-6)


def test_fine_grained_step_by_step():
    image = RNG.integers(0, 256, (32, 32, 1), dtype=np.uint8)
    gray = filtered(filtered(image[..., 0].astype(float), [0.25, 0.5, 0.25]), [0.25, 0.5, 0.25])
    parts = np.zeros((2, 32, 32))
    for half in (2, 3, 7, 4, 8, 16):  # 12, 24, 48, 28, 56, 112 of 224
        for i in range(32):
            for j in range(32):
                box = gray[max(i - half + 1, 0) : i + half + 1, max(j - half + 1, 0) : j + half + 1]
                difference = gray[i, j] - (box.sum() - gray[i, j]) / (box.size - 1)
                parts[:, i, j] += max(difference, 0), max(-difference, 0)
    expected = (parts / parts.max(axis=(1, 2), keepdims=True)).sum(axis=0).reshape(8, 4, 8, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(saliency.activation(image[None], 8, "fine_grained")[0], expected, rtol=1e-4)


def test_large_views_are_averaged_first():
    images = RNG.integers(0, 256, (2, 112, 224, 3), dtype=np.uint8)
    planes = saliency._planes(images, 7)  # cells of 16 x 32 pixels: 8 x 16 remain
    expected = images.reshape(2, 56, 2, 112, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(np.stack(planes, axis=-1), expected, rtol=1e-6)


@pytest.fixture
def mapped(tmp_path):
    """Smooth pictures of several sizes, and for each a map: its gray level, as numbers or as a picture."""
    for i in range(12):
        height, width = 40 + 4 * i, 90 - 3 * i
        y, x = np.mgrid[:height, :width]
        ramp = 60 + 150 * ((x / width + (i % 3) * y / height) / 3) ** (1 + i % 2)
        picture, salient = tmp_path / "images" / "ab"[i % 2], tmp_path / "maps" / "ab"[i % 2]
        picture.mkdir(parents=True, exist_ok=True)
        salient.mkdir(parents=True, exist_ok=True)
        gray = ramp.round().astype(np.uint8)
        Image.fromarray(np.stack([gray] * 3, axis=-1)).save(picture / f"{i}.png")
        if i % 3:
            np.save(salient / f"{i}.npy", ramp)
        else:
            Image.fromarray(gray).save(salient / f"{i}.png")
    return tmp_path


def batches_of(folder, maps, **fields):
    config = data_config(source="folder", path=str(folder / "images"), image_size=(28, 28), threads=1)
    rules = (CellRule(name="query", ratio=(0.2, 0.2)),)
    mask = CellMask(grid=7, provider="maps", spread=0.6, maps_path=str(maps), rules=rules)
    view = view_of((28, 28), mask, name="query", interpolation="bilinear")
    return pipeline.train_batches(open_source(config), [view], data_config=config, batch_size=4, seed=0, **fields)


def test_maps_are_cropped_and_mirrored_as_their_images(mapped):
    with batches_of(mapped, mapped / "maps") as batches:
        for _ in range(5):
            b = next(batches)
            seen = b["query"][..., 0].reshape(4, 7, 4, 7, 4).mean(axis=(2, 4))
            np.testing.assert_allclose(b["query_activation"], seen, atol=2.0)
            slope = b["query_activation"][:, :, -1].mean(axis=1) - b["query_activation"][:, :, 0].mean(axis=1)
            assert abs(slope).min() > 2.0  # else mirroring would not show


def resize(path):
    np.save(path, np.zeros((5, 6)))


def scribble(path):
    path.write_bytes(b"no array")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), r"maps_path=.*has no map for .*1\.png: it needs b/1\.npy or \.png"),
        (resize, r"1\.npy is 5x6 and its image .*1\.png 44x87"),
        (lambda path: path.write_bytes(b""), r"1\.npy is empty \(0 bytes\)"),
        (scribble, r"1\.npy cannot be read \(ValueError\)"),
    ],
)
def test_maps_that_do_not_fit_are_named(mapped, spoil, words):
    spoil(mapped / "maps" / "b" / "1.npy")
    images = str(mapped / "images")
    config = data_config(source="folder", path=images, test_path=images, image_size=(28, 28), threads=1)
    split = open_source(config).split("train")
    with pytest.raises(UserError, match=words):
        whole = np.tile([0, 0, 8, 8, 0], (len(split), 1))
        SaliencyMaps(str(mapped / "maps"), split, images).cells(np.arange(len(split)), whole, 4)


def test_a_folder_of_maps_that_is_not_there(mapped):
    with pytest.raises(UserError, match=r"method\.maps_path='.*nowhere' is not a folder"):
        batches_of(mapped, mapped / "nowhere")
