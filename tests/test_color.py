"""Colors: the operations against torchvision's, and what the host draws for them."""

import pathlib
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.views import data_config, host_batch, sampled, view_of
from PIL import Image, ImageOps

from maskcl_jax.data import on_device, pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create, options
from maskcl_jax.ops import color
from maskcl_jax.views.base import batch_shapes
from maskcl_jax.views.color import Color

RNG = np.random.default_rng(0)


def pictures(channels=3):
    """Noise, a flat gray picture, saturated colors and black, in 0..1."""
    images = RNG.random((4, 20, 24, channels)).astype(np.float32)
    images[1] = 0.25
    images[2] = images[2].round()
    images[3, :10] = 0.0
    return images


def torchvision():
    pytest.importorskip("torch")
    return pytest.importorskip("torchvision.transforms.functional")


def theirs(operation, images, *amounts):
    import torch

    done = [operation(torch.tensor(x.transpose(2, 0, 1)), *amounts) for x in images]
    return np.stack([np.broadcast_to(x.numpy(), images[0].transpose(2, 0, 1).shape) for x in done]).transpose(
        0, 2, 3, 1
    )


def ours(operation, images, amounts):
    """An operation on planes, of images."""
    return color.images_of(operation(color.planes_of(jnp.asarray(images)), jnp.asarray(amounts)))


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("brightness", (0.6, 1.0, 1.4)),
        ("contrast", (0.6, 1.4)),
        ("saturation", (0.0, 0.7, 1.4)),
        ("hue", (-0.5, -0.1, 0.0, 0.07, 0.4)),
    ],
)
def test_jitter_is_torchvisions(name, amounts):
    functional, images = torchvision(), pictures()
    for amount in amounts:
        changed = ours(getattr(color, f"adjust_{name}"), images, [amount] * 4)
        np.testing.assert_allclose(
            changed, theirs(getattr(functional, f"adjust_{name}"), images, amount), rtol=0, atol=2e-6
        )


def test_grey_is_torchvisions():
    functional, images = torchvision(), pictures()
    gray = ours(lambda planes, _: (color.grayscale_of(planes),) * 3, images, 0)
    np.testing.assert_allclose(gray, theirs(functional.rgb_to_grayscale, images, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_torchvisions(sigma):
    functional, images = torchvision(), pictures()
    blurred = ours(color.gaussian_blur, images, [sigma] * 4)
    expected = theirs(functional.gaussian_blur, images, [13, 13], [sigma, sigma])
    np.testing.assert_allclose(blurred, expected, rtol=0, atol=2e-6)


def test_solarize_and_blur_leave_the_others_alone():
    images = pictures()
    solarized = ours(color.solarize, images, [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(solarized[0], np.where(images[0] >= 0.5, 1 - images[0], images[0]), atol=1e-7)
    np.testing.assert_array_equal(solarized[1:], images[1:])
    blurred = ours(color.gaussian_blur, images, [0.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(blurred[0], images[0])


@pytest.mark.parametrize("level", [0, 64, 128, 255])
def test_the_solarize_threshold_of_the_config_holds_on_device_and_host(level):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(levels[0]), level))
    config = config_of("mocov3.py:embedded")
    chosen = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0, "solarize_p": 1.0, "solarize_threshold": level / 256}
    config.method.key_augment.update(chosen)
    for place in ("device", "host"):
        config.augment.photometric = place
        view = view_of((16, 16), options.color(config, "key_augment"), name="key")
        batch = host_batch([view], [0])
        batch.images["key"] = levels
        batch.add_ingredients()
        seen = options.float_images(batch.arrays | batch.images, view)[0]
        np.testing.assert_array_equal(np.round(255 * np.asarray(seen)), expected, err_msg=place)


def test_a_solarize_threshold_out_of_range_is_refused():
    config = config_of("mocov3.py:embedded")
    config.method.key_augment.solarize_threshold = 128.0
    with pytest.raises(UserError, match=r"key_augment\.solarize_threshold=128\.0 is out of range: use 0\.0 to 1"):
        create(config)


def row(**values):
    out = np.array(color.IDENTITY, np.float32)
    for name, value in values.items():
        out[color.COLUMNS.index(name)] = value
    return out


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_the_order_of_the_jitter(order):
    functional, images = torchvision(), pictures()
    amounts = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.2, "hue": 0.08}
    places = {f"order_{i + 1}": number for i, number in enumerate(order)}
    changed = color.apply(jnp.asarray(images), jnp.asarray(np.tile(row(**amounts, **places), (4, 1))))
    expected = images
    for number in order:
        name = list(amounts)[number]
        expected = theirs(getattr(functional, f"adjust_{name}"), expected, amounts[name])
    np.testing.assert_allclose(changed, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_nothing_asked_for_changes_nothing(channels):
    images = pictures(channels)
    unchanged = color.apply(jnp.asarray(images), jnp.asarray(np.tile(row(), (4, 1))))
    np.testing.assert_allclose(unchanged, images, atol=1e-6)


def test_every_image_has_its_own():
    images = pictures()
    rows = np.stack([row(), row(grayscale=1.0), row(solarize=1.0), row(brightness=0.5)])
    together = color.apply(jnp.asarray(images), jnp.asarray(rows))
    for i in range(4):
        alone = color.apply(jnp.asarray(images[i : i + 1]), jnp.asarray(rows[i : i + 1]))
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


def draw(count=20000, **fields):
    return sampled(view_of((8, 8), Color(**fields), name="key"), range(count), epoch=2)["key_color"]


def test_what_is_drawn_has_the_stated_distribution():
    p = dict(zip(color.COLUMNS, draw(solarize_p=0.2).T, strict=True))
    jittered = p["brightness"] != 1.0
    assert abs(jittered.mean() - 0.8) < 0.01
    for name in ("brightness", "contrast", "saturation"):
        values = p[name][jittered]
        assert (values.min() >= 0.6, values.max() <= 1.4) == (True, True)
        assert abs(values.mean() - 1.0) < 0.01
    assert abs(p["hue"]).max() <= 0.1
    assert (abs(p["grayscale"].mean() - 0.2) < 0.01, abs(p["solarize"].mean() - 0.2) < 0.01) == (True, True)
    blurred = p["blur_sigma"][p["blur_sigma"] > 0]
    assert abs(len(blurred) / 20000 - 0.5) < 0.012
    assert (blurred.min() >= 0.1, blurred.max() <= 2.0, abs(blurred.mean() - 1.05) < 0.02) == (True, True, True)
    orders = np.stack([p[f"order_{i}"] for i in (1, 2, 3, 4)], axis=1).astype(int)
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 24
    assert abs(counts / 20000 - 1 / 24).max() < 0.006


def test_what_is_drawn_depends_on_the_example_only():
    part = sampled(view_of((8, 8), Color(), name="key"), [7, 3], epoch=2)["key_color"]
    np.testing.assert_array_equal(part, draw(50)[[7, 3]])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_host_changes_colors_as_the_device_does(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 20, 24, channels), dtype=np.uint8)
    rows = draw(40, solarize_p=0.3)
    view = view_of((20, 24), Color(solarize_p=0.3, applied_on="host"), name="key")
    batch = host_batch([view], range(40), epoch=2)
    batch.images["key"] = images
    batch.add_ingredients()
    assert batch.arrays == {}
    host = batch.images["key"]
    device = 255 * np.asarray(color.apply(jnp.asarray(images) / 255.0, jnp.asarray(rows)))
    assert host.dtype == np.uint8
    assert abs(host - device).max() <= 0.5 + 1e-3  # it rounds, and does nothing else
    assert abs(host.astype(int) - images).max() > 50


@pytest.mark.parametrize("kind", ["synthetic", "folder"])
def test_batches_of_the_host_hold_what_the_device_would_see(kind, tmp_path):
    config = data_config(source=kind, num_examples=22, path=str(tmp_path), image_size=(16, 16))
    if kind == "folder":
        for i in range(22):
            Image.fromarray(RNG.integers(0, 256, (30, 34, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    batches = {}
    for place in ("device", "host"):
        views = [view_of((16, 16), Color(applied_on=place), name="key")]
        with pipeline.train_batches(open_source(config), views, data_config=config, batch_size=20, seed=0) as made:
            batches[place] = next(made)
        assert {k: (v.shape, str(v.dtype)) for k, v in batches[place].items()} == batch_shapes(views, 20, 3)
        batches[place]["seen"] = np.asarray(options.float_images(batches[place], views[0]))
    assert "key_color" not in batches["host"]
    assert abs(batches["host"]["seen"] - batches["device"]["seen"]).max() <= 0.501 / 255


def test_fields_that_do_not_go_with_colors_on_the_host():
    config = config_of("moco_v2.py:embedded")
    config.augment.photometric = "host"
    source, options = open_source(config.data), {"channels": 3, "devices": 1, "sharding": None}
    with pytest.raises(UserError, match=r"augment.photometric='host' does not go with data.on_device"):
        on_device.place(source, create(config).views, **options)
    config.augment.photometric = "hots"
    with pytest.raises(UserError, match=r"augment.photometric='hots' is unknown"):
        _ = create(config).views
    clean = config_of("macrl.py:embedded")
    clean.augment.photometric, clean.method.recon_target = "host", "clean"
    with pytest.raises(UserError, match=r"recon_target='clean'.*augment.photometric='device'"):
        create(clean)


def config_of(name):
    file, _, preset = name.partition(":")
    return runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / file))["get_config"](preset)
