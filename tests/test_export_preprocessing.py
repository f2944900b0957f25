"""The preprocessing of an export: that of the run's evaluations, or a refusal."""

import dataclasses
import json
import re

import numpy as np
import pytest
from helpers.exports import exports, library
from helpers.untrained import made

from maskcl_jax.errors import UserError
from maskcl_jax.interchange import check, hf_format, timm_format
from maskcl_jax.interchange.exporting import export_run
from maskcl_jax.interchange.formats import FORMATS

PREPROCESSED = [
    {"data.image_size": (32, 32)},
    {"data.image_size": (32, 48), "model.patch_size": 16},
    {"data.image_size": (32, 32), "data.eval_resize": 256 / 224},
    {"data.image_size": (64, 64), "data.eval_resize": 1.25, "data.channels": 1, "model.patch_size": 16},
    {"data.exif": True},
    {"data.exif": True, "data.channels": 1, "data.eval_resize": 1.25},
]


@pytest.mark.parametrize("format", ["timm", "hf"])
@pytest.mark.parametrize("fields", PREPROCESSED)
def test_preprocessing_is_the_runs_on_photographs_of_several_shapes(format, fields, tmp_path):
    library(format)
    (folder,) = exports(made("mae", **fields), [format], tmp_path)
    text = (folder / "README.md").read_text()
    found = re.search(r"preprocessing of 5 photographs of several shapes: at most ([\d.]+) of 255 levels", text)
    whole = fields.get("data.eval_resize", 1.0) == 1.0
    assert float(found[1]) < (0.5 if whole else 12)
    assert ("half a pixel" in text) != whole
    turned = fields.get("data.exif", False)
    assert ("image = ImageOps.exif_transpose(image)" in text) == turned
    assert ("| turned as EXIF says" in text) == turned


@pytest.mark.parametrize(
    ("exif", "lines"), [(True, ""), (False, "from PIL import ImageOps\nimage = ImageOps.exif_transpose(image)\n")]
)
def test_photographs_that_are_turned_otherwise_are_not_exported(exif, lines, tmp_path, monkeypatch):
    library("timm")
    monkeypatch.setattr(timm_format, "turning_lines", lambda p: lines)
    with pytest.raises(UserError, match="its preprocessing is not the run's: a photograph of 400x250 differs"):
        export_run(made("mae", **{"data.exif": exif}), "timm", str(tmp_path / "out"), check=True)


def test_timm_preprocesses_images_that_are_not_square(tmp_path):
    library("timm")
    fields = {"data.image_size": (32, 48), "model.patch_size": 16, "data.eval_resize": 1.25}
    (folder,) = exports(made("mae", **fields), ["timm"], tmp_path)
    assert "preprocessing of 5 photographs" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "fields",
    [
        {"data.image_size": (32, 48), "model.patch_size": 16, "data.eval_resize": 1.25},
        {"data.channels": 2},
    ],
)
def test_preprocessing_that_transformers_cannot_express_is_not_claimed(fields, tmp_path):
    """A shorter side of 40 pixels does not cover 40x60; no processor takes two channels."""
    said = export_run(made("mae", **fields), "hf", str(tmp_path / "out"), check=False).readme
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["config.json", "export.json"]
    assert "No image processor of transformers does this run's preprocessing" in said
    assert "AutoImageProcessor" not in said


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, {"crop_mode": "center", "crop_pct": 0.875}),
        ({}, {"interpolation": "bilinear"}),
        ({}, {"mean": [0.5, 0.5, 0.5]}),
        ({"data.eval_resize": 1.25}, {"crop_pct": 1.0}),
        ({"data.eval_resize": 1.25}, {"crop_mode": "squash"}),
    ],
)
def test_another_preprocessing_is_not_exported(fields, wrong, tmp_path, monkeypatch):
    library("timm")
    right = timm_format.texts

    def broken(p):
        config = json.loads(right(p)["config.json"])
        config["pretrained_cfg"] |= wrong
        return {"config.json": json.dumps(config)}

    monkeypatch.setitem(FORMATS, "timm", dataclasses.replace(FORMATS["timm"], texts=broken))
    monkeypatch.setattr(check, "our_feature", lambda p, pixels: np.zeros((len(pixels), 32), np.float32))
    monkeypatch.setattr(check, "LIMIT", np.inf)
    with pytest.raises(UserError, match="its preprocessing is not the run's") as caught:
        export_run(made("mae", **fields), "timm", str(tmp_path / "out"), check=True)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_transformers_that_would_pad_and_zoom_are_not_exported(tmp_path, monkeypatch):
    """What was written until now: the shorter side of 1.25 times the shorter side, whatever the longer one."""
    library("hf")
    run = made("mae", **{"data.image_size": (32, 48), "model.patch_size": 16, "data.eval_resize": 1.25})

    def shorter_side(p):
        size = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 48}}
        mean, std = p.moments
        return size | {"image_processor_type": "CLIPImageProcessor", "image_mean": mean, "image_std": std}

    monkeypatch.setattr(hf_format, "preprocessor", shorter_side)
    with pytest.raises(UserError, match=r"its preprocessing is not the run's: a photograph of \d+x\d+ differs by"):
        export_run(run, "hf", str(tmp_path / "out"), check=True)
    assert list(tmp_path.iterdir()) == []


def test_timm_brings_preprocessing_and_takes_other_heads(tmp_path):
    timm = library("timm")
    run = made("mae", **{"data.eval_resize": 1.25, "data.mean": (0.1, 0.2, 0.3)})
    export_run(run, "timm", str(tmp_path / "out"))
    name = f"local-dir:{tmp_path / 'out'}"
    model = timm.create_model(name, pretrained=True, num_classes=10)
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["mean"]) == (0.1, 0.2, 0.3)
    assert tuple(data["std"]) == (0.229, 0.224, 0.225)
    assert (tuple(data["input_size"]), data["crop_pct"], data["crop_mode"]) == ((3, 32, 32), 0.8, "center")
    assert model.head.out_features == 10
    kept = timm.create_model(name, pretrained=True).state_dict()
    for other in (model, timm.create_model(name, pretrained=True, global_pool="token")):
        for key, value in kept.items():
            np.testing.assert_array_equal(other.state_dict()[key].numpy(), value.numpy())
    larger = timm.create_model(name, pretrained=True, img_size=(48, 32))
    assert larger.pos_embed.shape == (1, 25, 32)
    grey = timm.create_model(name, pretrained=True, in_chans=1)
    assert grey.patch_embed.proj.weight.shape == (32, 1, 8, 8)
