"""Exports: what is refused, in one line and with nothing left behind."""

import json
import re
import subprocess
import sys

import pytest
from helpers.processes import environment
from helpers.tiny import ROOT
from helpers.untrained import made, write_run
from helpers.weights import STOCK

from maskcl_jax.errors import UserError
from maskcl_jax.interchange.exporting import export, export_run


def command(*arguments: str):
    """`python -m maskcl_jax.export`, as a user types it."""
    line = [sys.executable, "-m", "maskcl_jax.export", *arguments]
    return subprocess.run(line, env=environment(1), cwd=ROOT, capture_output=True, text=True)


def test_a_wrong_flag_is_said(tmp_path):
    failed = command(f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--format=time")
    assert failed.returncode == 2
    assert re.fullmatch(r"error: .*format=time: value should be one of <timm\|hf.*\n", failed.stderr)


@pytest.mark.parametrize(
    ("name", "fields", "options", "words"),
    [
        (
            "mae",
            {},
            {"format": "detectron2"},
            "--format=detectron2 is for a ResNet encoder, not for a ViT encoder: use",
        ),
        ("mae", {}, {"format": "torchvision"}, "use one of timm, hf"),
        ("moco_v2", {}, {"format": "mae"}, "not for a ResNet encoder: use one of timm, hf"),
        ("moco_v2", {}, {"format": "timm"}, "timm has no ResNet with the small stem"),
        ("moco_v2", {"model.stem": "imagenet"}, {"format": "timm"}, "stem has 4 channels: --format=torchvision"),
        ("moco_v2", {}, {"format": "hf"}, "transformers has no ResNet with the small stem"),
        ("moco_v2", {}, {"format": "mmdet"}, "mmdet has no ResNet with the small stem"),
        ("moco_v2", STOCK, {"format": "detectron2"}, "detectron2 has no ResNet-10"),
        ("moco_v2", STOCK, {"format": "mmpretrain"}, "mmpretrain has no ResNet-10"),
        ("moco_v2", {"model.stem": "imagenet", "data.channels": 1}, {"format": "detectron2"}, "not 1 channels"),
        (
            "cmae",
            {},
            {"format": "hf", "network": "target"},
            "which this target encoder does not have",
        ),
        (
            "cmae",
            {},
            {"format": "mae", "network": "target"},
            "which this target encoder does not have",
        ),
        ("cmae", {"data.image_size": (32, 48)}, {"format": "hf", "full": True}, "square images, not 32x48"),
        ("cmae", {"method.feature_decoder.kind": "none"}, {"format": "cmae", "full": True}, "feature_decoder"),
        ("mae", {}, {"format": "timm", "network": "target"}, "a run of 'mae' has no target network"),
        ("mae", {}, {"format": "mae", "full": True, "network": "target"}, "--full exports both networks"),
        ("mae", {}, {"format": "timm", "full": True}, "not for a whole pre-training model: use one of hf, mae"),
        ("mae", {}, {"format": "cmae", "full": True}, "names what a run of 'mae' as configured does not have"),
        ("mae", {}, {"format": "mocov3"}, "add --full"),
        ("mae", {}, {"format": "moco_v2", "full": True}, "for a method with a ResNet encoder, not with a ViT encoder"),
        ("moco_v2", {}, {"format": "mae", "full": True}, "for a method with a ViT encoder, not with a ResNet encoder"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(name, fields, options, words, tmp_path):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        export_run(made(name, **fields), out=str(tmp_path / "out"), **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is this the folder of a run"):
        export(str(tmp_path / "empty"), "timm", str(tmp_path / "out"))
    write_run(tmp_path / "run", "mae")
    with pytest.raises(UserError, match="holds no checkpoint of step 3: there are 7"):
        export(str(tmp_path / "run"), "timm", str(tmp_path / "out"), step=3)
    for folder in (tmp_path / "run/checkpoints").iterdir():
        folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds no checkpoint: train first"):
        export(str(tmp_path / "run"), "timm", str(tmp_path / "out"))
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=r"--out=.*there exists: give another"):
        export(str(tmp_path / "run"), "timm", str(tmp_path / "there"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "empty", "run", "there"]


def test_a_broken_checkpoint_is_said(tmp_path):
    write_run(tmp_path / "run", "mae")
    for file in (tmp_path / "run/checkpoints").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(
        UserError, match=r"no checkpoint of this run can be read: checkpoint .*checkpoints.7 is damaged"
    ):
        export(str(tmp_path / "run"), "timm", str(tmp_path / "out"))
    write_run(tmp_path / "old", "mae")
    record = tmp_path / "old/config.json"
    fields = json.loads(record.read_text())
    del fields["method.decoder.width"]
    record.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"config\.json is of another version"):
        export(str(tmp_path / "old"), "timm", str(tmp_path / "out"))
