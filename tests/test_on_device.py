"""Views made inside the step are those of the host: the same maths, the same distributions; and files of arrays."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.processes import environment
from helpers.tiny import CONFIGS, ROOT, of_device, quick, saved_state, tiny
from helpers.views import host_and_device, host_batch, view_of
from PIL import Image

from maskcl_jax.data import decode, on_device
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create
from maskcl_jax.ops.resize import resized_crops
from maskcl_jax.training import checkpoint, loop
from maskcl_jax.views.base import batch_shapes
from maskcl_jax.views.batches import DeviceBatch
from maskcl_jax.views.boxes import Boxes
from maskcl_jax.views.cell_mask import CellMask
from maskcl_jax.views.color import Color
from maskcl_jax.views.patch_mask import PatchMask


def smooth(count, height, width, channels=3):
    """Pictures with edges and flat places, without the highest frequencies of noise."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, -(-height // 4), -(-width // 4), channels))
    return coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("master", [None, (30, 26)])
def test_a_crop_is_pillows(interpolation, master, monkeypatch):
    monkeypatch.setattr(decode, "cykooz_resizer", None)
    view = view_of((24, 20), interpolation=interpolation, master=master, shift=6 if master else 0)
    images = smooth(16, 48, 40)
    crops = host_batch([view], range(16), image=(48, 40)).crops["image"]
    crops[:2, :4] = [[0, 0, 48, 40], [5, 7, 24, 20]]  # all of it; nothing to resize without a master
    crops[:, 4] = np.arange(16) % 2
    most = view.crop.shift + 1
    shift = np.stack([np.arange(16) % most, np.arange(16)[::-1] % most], axis=1)
    options = {"size": (24, 20), "master": master, "interpolation": interpolation}
    got = np.asarray(resized_crops(*map(jnp.asarray, (images, crops, shift)), **options)).astype(int)
    for i, (*box, flip) in enumerate(crops.tolist()):
        whole = decode.crop_and_resize(
            images[i], box, size=master or (24, 20), interpolation=interpolation, flip=bool(flip)
        )
        down, across = shift[i]
        expected = whole[down : down + 24, across : across + 20].astype(int)
        # Pillow computes in fixed point: a value half way between two levels may fall to either side.
        assert np.abs(got[i] - expected).max() <= 1
        assert (got[i] != expected).mean() < 0.1


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_batch_is_one_of_the_method(name):
    c = of_device(name)
    views = create(c).views
    images = jnp.asarray(open_source(c.data).split("train").images)
    batch = jax.eval_shape(
        lambda images, index: on_device.batch_of(views, images, index, jax.random.key(0)), images, jnp.arange(8)
    )
    expected = batch_shapes(views, 8, c.data.channels)
    del expected["label"]
    expected["index"] = (8,), "int32"
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == expected


def only(views, kind):
    """The views with their ingredients of one class only."""
    return [dataclasses.replace(v, ingredients=tuple(i for i in v.ingredients if isinstance(i, kind))) for v in views]


@pytest.mark.parametrize("name", ["cmae", "ccmim", "macrl"])
def test_the_same_numbers_make_the_same_patch_masks(name):
    host, device = host_and_device(only(create(of_device(name)).views, PatchMask), 8)
    assert host
    jax.tree.map(np.testing.assert_array_equal, host, device)


def test_the_same_numbers_make_the_same_colors_cells_and_boxes():
    colors = [view_of((8, 8), Color()), view_of((8, 8), Color(jitter_p=1.0, blur_p=0.0, solarize_p=0.5), name="other")]
    host, device = host_and_device(colors, 32)
    for key in host:
        np.testing.assert_allclose(device[key], host[key], rtol=1e-6, atol=1e-6)
    host, device = host_and_device(only(create(of_device("saliency_masking")).views, CellMask), 8)
    assert all(value.any() for key, value in host.items() if key.endswith("_cells"))
    jax.tree.map(np.testing.assert_array_equal, host, device)
    views = only(create(of_device("maskco")).views, Boxes)
    crop = np.array([[0, 0, 30, 28, 0], [2, 3, 20, 24, 1]], np.int32)
    host, device = host_and_device(views, 2, {views[0].name: crop, views[1].name: crop[::-1].copy()})
    assert set(host) == {"query_boxes", "key_boxes"}
    for key in host:
        np.testing.assert_allclose(device[key], host[key], atol=1e-4)  # pixels; the device has no float64


def test_crops_are_distributed_like_the_hosts():
    view = view_of((8, 8), scale=(0.2, 1.0))
    host = host_batch([view], range(20_000), image=(32, 40)).crops["image"][:, :4].astype(float)
    batch = DeviceBatch([view], key=jax.random.key(0), size=20_000)
    device = np.asarray(view.crop.sample(view, batch, 32, 40))[:, :4].astype(float)
    assert (device[:, 0] + device[:, 2] <= 32).all() and (device[:, 1] + device[:, 3] <= 40).all()
    # Five standard errors of the difference of two means.
    limit = 5 * np.sqrt(2 / 20_000) * host.std(axis=0)
    assert (np.abs(host.mean(axis=0) - device.mean(axis=0)) < limit).all()
    device, host = (np.quantile(boxes, [0.1, 0.5, 0.9], axis=0) for boxes in (device, host))
    np.testing.assert_allclose(device, host, atol=1.01)  # whole pixels


def test_views_are_distributed_like_the_hosts():
    """Left-right asymmetry and visible patches of the views of one asymmetric image."""
    c = of_device("mae")
    views = create(c).views
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[None, None, :, None], (256, 32, 1, 3))
    index = jnp.arange(256)
    device = jax.jit(lambda i: on_device.batch_of(views, jnp.asarray(ramp), index, jax.random.key(i)))
    found = np.concatenate([np.asarray(device(i)["image"], float) for i in range(8)])
    mirrored = (found[:, :, -1] < found[:, :, 0]).mean()
    assert abs(mirrored - 0.5) < 5 * 0.5 / np.sqrt(len(found))
    visible = np.concatenate([np.asarray(device(i)["visible"]) for i in range(8)])
    counts = np.bincount(visible.ravel(), minlength=views[0].find(PatchMask).num_patches)
    expected = visible.size / views[0].find(PatchMask).num_patches
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


CHILD = """
import hashlib, json, sys
sys.path.insert(0, "tests")
import jax, numpy as np
from helpers.tiny import of_device
from maskcl_jax.training import sharding
from maskcl_jax.data import on_device
from maskcl_jax.data.sources import open_source
from maskcl_jax.methods import create
c = of_device("maskco")
for devices in (1, 8):
    mesh = sharding.create_mesh(c.mesh, jax.devices()[:devices])
    method, source = create(c), open_source(c.data)
    lying = {"devices": mesh.size, "sharding": sharding.batch_sharding(mesh)}
    images = on_device.place(source, method.views, channels=c.data.channels, **lying)
    index = sharding.put(next(on_device.indices(len(source.split("train")), batch_size=8, seed=0)), mesh)["index"]
    make = jax.jit(lambda images, index: on_device.batch_of(method.views, images, index, jax.random.key(3)))
    batch = make(images, index)
    views = {k: hashlib.md5(np.asarray(v).tobytes()).hexdigest() for k, v in batch.items() if k in ("query", "key")}
    rows = images.addressable_shards[0].data.shape[0]
    print(json.dumps({"devices": len(images.sharding.device_set), "rows": rows, "views": views}))
"""


def test_images_split_over_devices_make_the_same_views():
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(8), check=True)
    one, eight = map(json.loads, done.stdout.splitlines()[-2:])
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert eight["rows"] == -(-one["rows"] // 8)
    assert eight["views"] == one["views"]


def test_a_run_that_goes_on_makes_the_views_of_the_first(tmp_path, capsys):
    config = quick("moco_v2", **{"data.on_device": True})
    loop.train(config, str(tmp_path))
    straight = saved_state(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    assert checkpoint.Checkpoints(tmp_path).latest() == 3
    loop.train(config, str(tmp_path))
    assert "resumed from step 3" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, straight, saved_state(tmp_path))
    assert (tmp_path / "pictures" / "step_00000006.png").exists()


def test_what_only_the_host_can_make_is_refused(tmp_path):
    c = tiny("saliency_masking", **{"data.on_device": True})
    with pytest.raises(UserError, match=r"method.provider='boundary' is made on the host.*use uniform or center"):
        loop.train(c, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_images_of_many_sizes_are_refused(tmp_path):
    for i in range(16):
        Image.fromarray(smooth(1, 40 + i, 40)[0]).save(tmp_path / f"{i}.png")
    c = of_device("mae")
    c.data.source, c.data.path = "folder", str(tmp_path)
    with pytest.raises(UserError, match=r"data.on_device=True needs decoded images of one size.*to_array.*npz"):
        loop.train(c, str(tmp_path / "run"))


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    c = tiny("mae")
    c.data.source, c.data.path = "npz", str(tmp_path / "data.npz")
    return c


def test_a_file_of_arrays_is_a_source(tmp_path):
    images, labels = smooth(20, 32, 32, 1)[..., 0], np.arange(20)[:, None] % 3
    c = npz(tmp_path, train_images=images, train_labels=labels, test_images=images[:5], test_labels=labels[:5])
    source = open_source(c.data)
    assert (source.num_classes, source.num_examples("train"), source.num_examples("test")) == (3, 20, 5)
    assert source.description == "data.npz of 32x32x1, 20 training and 5 test images, 3 classes"
    split = source.split("train")
    np.testing.assert_array_equal(split.images[..., 0], images)
    np.testing.assert_array_equal(split.labels, labels[:, 0])
    more = npz(tmp_path, train_images=images, val_images=images[:4], val_labels=labels[:4], images=images, note="x")
    said = ", no labels (not used: val_images of 4, val_labels of 4, images of 20)"
    assert open_source(more.data).description.endswith(said)
    plain = open_source(npz(tmp_path, images=smooth(6, 32, 32)).data)
    assert (plain.num_classes, plain.num_examples("train"), plain.num_examples("test")) == (0, 6, 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "no array train_images or images: it has pictures"),
        ({"images": np.zeros((2, 4, 4), np.float32)}, r"the train images are float32 \(2, 4, 4, 1\)"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)},
            r"labels are int64 \(3,\) for 2 images",
        ),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 4]), "class_names": ["a"]},
            "labels up to 4, but 1 class_names",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_told(arrays, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_source(npz(tmp_path, **arrays).data)


def test_a_data_set_is_written_into_one_file_and_never_over_another(tmp_path):
    for i in range(12):
        (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(1, 40 + i, 40)[0]).save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    out = tmp_path / "data.npz"
    command = [sys.executable, "-m", "maskcl_jax.data.to_array", "--data=folder", f"--path={tmp_path / 'images'}"]
    command += [f"--test_path={tmp_path / 'images'}", "--image_size=16", f"--out={out}"]
    options = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment(1)}
    done = subprocess.run(command, check=True, **options)
    assert "train: 12 images of 16x16x3" in done.stdout
    with np.load(out) as file:
        assert file["train_images"].shape == (12, 16, 16, 3)
        assert sorted(file["test_labels"]) == [0] * 6 + [1] * 6
        assert list(file["class_names"]) == ["a", "b"]
    again = subprocess.run(command, check=False, **options)
    assert again.returncode == 2 and "is already there: remove it, or name another" in again.stderr
