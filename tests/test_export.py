"""Exports: loaded as a user would load them, with our features; refused in one line, with nothing left behind."""

import dataclasses
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.exports import exports, library, torch
from helpers.processes import environment
from helpers.tiny import tiny
from helpers.untrained import made, run_of, write_run
from helpers.weights import STOCK
from safetensors.numpy import load_file

from maskcl_jax.config import encoder_size
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import check, pickles
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.interchange.exporting import export_run
from maskcl_jax.interchange.formats import FORMATS


@pytest.fixture
def strict(monkeypatch):
    """Each format of a run must be within 1e-5 of ours, which is computed for the first of them."""
    found, right = [], check.our_feature
    monkeypatch.setattr(check, "LIMIT", 1e-5)

    def remembered(p, pixels):
        if not found:
            found.append(right(p, pixels))
        return found[0]

    monkeypatch.setattr(check, "our_feature", remembered)


VITS = [
    ("mae", {"data.image_size": (32, 48), "eval.feature": "mean"}),
    ("mae", {"data.channels": 1, "eval.feature": "cls", "model.mlp_ratio": 2.0}),
    ("ccmim", {"data.channels": 2, "data.image_size": (64, 32), "model.patch_size": 16, "eval.feature": "mean"}),
    ("cmae", {"data.channels": 4, "data.image_size": (24, 32), "eval.feature": "cls", "dtype": "bfloat16"}),
    ("mocov3", {"model.heads": 4, "model.depth": 2, "eval.feature": "mean"}),
    ("macrl", {"eval.feature": "cls"}),
]


@pytest.mark.parametrize(("name", "fields"), VITS)
def test_a_vit_gives_our_feature_everywhere(name, fields, strict, tmp_path):
    library("timm")
    exports(made(name, **fields), ["timm", "mae", "cmae", "mmpretrain"], tmp_path)


@pytest.mark.parametrize(("name", "fields"), VITS)
def test_a_vit_gives_our_feature_in_transformers(name, fields, strict, tmp_path):
    library("hf")
    exports(made(name, **fields), ["hf"], tmp_path)


def detectron2_reads(path) -> dict:
    """A `.pkl` by the rules of detectron2's DetectionCheckpointer: "model" and "__author__", numpy arrays.

    The names by those of facebookresearch/moco `convert-pretrain.py`, written down apart from our table.
    """
    with open(path, "rb") as file:
        data = pickle.load(file, encoding="latin1")
    assert {"model", "__author__"} <= data.keys()
    assert data["matching_heuristics"] is True
    assert all(type(value) is np.ndarray for value in data["model"].values())
    return data["model"]


def renamed_for_detectron2(key: str) -> str:
    if "layer" not in key:
        key = "stem." + key
    for t in (1, 2, 3, 4):
        key = key.replace(f"layer{t}", f"res{t + 1}")
    for t in (1, 2, 3):
        key = key.replace(f"bn{t}", f"conv{t}.norm")
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_gives_our_feature_everywhere(depth, strict, tmp_path):
    library("torchvision")
    run = made("moco_v2", **STOCK, **{"model.depth": depth, "dtype": "bfloat16"})
    formats = ["detectron2", "torchvision", "timm", "mmpretrain", "mmdet"] + (["hf"] if has_transformers() else [])
    detectron2, same, *_ = exports(run, formats, tmp_path)
    expected = {renamed_for_detectron2(k): v for k, v in load_file(same / "model.safetensors").items()}
    found = detectron2_reads(detectron2 / "model.pkl")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_the_detectron2_settings(tmp_path):
    yaml = pytest.importorskip("yaml")
    run = made("moco_v2", **STOCK, **{"model.depth": 18})
    said = export_run(run, "detectron2", str(tmp_path / "out"), check=False).readme
    settings = yaml.safe_load((tmp_path / "out/detectron2.yaml").read_text())
    assert settings["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert settings["MODEL"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert settings["MODEL"]["RESNETS"] == {"DEPTH": 18, "STRIDE_IN_1X1": False, "RES2_OUT_CHANNELS": 64}
    assert settings["INPUT"]["FORMAT"] == "RGB"
    assert "PIXEL_MEAN: [123.675, 116.28, 103.53]" in said


def has_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    ("fields", "formats"),
    [
        ({}, ["torchvision"]),  # 4 channels in the small stem
        ({"model.depth": 14, "model.stem": "imagenet", "data.channels": 4}, ["torchvision", "hf"]),
        ({**STOCK, "model.depth": 14, "data.channels": 1}, ["timm", "torchvision", "hf"]),
        ({"model.width": 64, "model.depth": 18}, ["mmpretrain"]),  # ResNet_CIFAR
        ({**STOCK, "model.depth": 10, "model.stages": (1, 2, 1, 1)}, ["timm", "torchvision", "hf"]),
    ],
)
def test_unusual_resnets(fields, formats, strict, tmp_path):
    library("torchvision")
    exports(made("moco_v2", **fields), [f for f in formats if f != "hf" or has_transformers()], tmp_path)


@pytest.mark.parametrize(("name", "formats"), [("cmae", ["timm", "cmae", "mmpretrain"]), ("mocov3", ["timm", "mae"])])
def test_the_target_network_too(name, formats, strict, tmp_path):
    library("timm")
    run = made(name)
    folder, *_ = exports(run, formats, tmp_path, network="target")
    assert "| network | EMA target |" in (folder / "README.md").read_text()
    online = run.state.params["encoder"]["cls_token"]
    np.testing.assert_allclose(load_file(folder / "model.safetensors")["cls_token"], online * 0.75, rtol=1e-6)


WHOLE = [("mae", "mae"), ("ccmim", "ccmim"), ("cmae", "cmae"), ("mocov3", "mocov3"), ("moco_v2", "moco_v2")]


@pytest.mark.parametrize(("name", "format"), [*WHOLE, ("macrl", "mae"), ("cmae", "mae")])
def test_whole_models(name, format, strict, tmp_path):
    torch()
    library("timm" if name != "moco_v2" else "torchvision")
    (folder,) = exports(made(name), [format], tmp_path, full=True)
    left = re.search(r"\| left out \| (.*) \|", (folder / "README.md").read_text())[1]
    assert (left == "nothing") == (name == format)
    assert ("params/projector" in left) == (name != format)


@pytest.mark.parametrize("name", ["mae", "cmae"])
def test_transformers_reconstructs_what_we_reconstruct(name, strict, tmp_path):
    library("hf")
    (folder,) = exports(made(name), ["hf"], tmp_path, full=True)
    assert "prediction on 5 photographs" in (folder / "README.md").read_text()


def test_pickles_name_nothing_that_numpy_1_lacks():
    assert b"numpy._core" not in pickles.detectron2_file({"x": np.zeros(3, np.float32)})


def test_every_readme_runs(tmp_path, monkeypatch):
    torch()
    monkeypatch.chdir(tmp_path)  # the paths in it are those that were given
    runs = {"vit": made("mae"), "resnet": made("moco_v2", **STOCK, **{"model.depth": 18})}
    ran = set()
    for format, layouts in LAYOUTS.items():
        if format == "hf" and not has_transformers():
            continue
        whole = format in ("ccmim", "mocov3", "moco_v2")
        run = made(format) if whole else runs["vit" if "vit" in layouts else "resnet"]
        folder = f"exports/{format}"
        export_run(run, format, folder, check=False, full=whole)
        (lines,) = re.findall(r"```python\n(.*?)```", pathlib.Path(folder, "README.md").read_text(), re.DOTALL)
        namespace: dict = {}
        exec(lines, namespace)
        assert ("model" in namespace) == (format in ("timm", "hf", "torchvision"))
        assert "model" in namespace or len(namespace["state"]) > 10
        ran.add(format)
    assert {"timm", "torchvision", "detectron2", "mae"} <= ran


def test_a_difference_leaves_nothing_behind(tmp_path, monkeypatch):
    library("timm")
    monkeypatch.setattr(check, "LIMIT", 0.0)
    with pytest.raises(UserError, match=r"--format=timm: their feature is not ours: largest difference \d"):
        export_run(made("mae"), "timm", str(tmp_path / "deep/er/out"))
    assert list(tmp_path.iterdir()) == []


BROKEN = """
class Lazy:
    def __getattr__(self, name):
        raise RuntimeError("operator torchvision::nms does not exist\\nand a page of traceback")

import sys
Lazy.__version__, Lazy.AutoModel, Lazy.__spec__ = "5.0", object, None
sys.modules[__name__] = Lazy()
"""


def test_a_library_that_is_installed_and_broken_is_a_reason_in_one_line(tmp_path, monkeypatch):
    """It imports, and fails where a model is asked for, as transformers does beside a torchvision of another build."""
    torch()
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "transformers.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    run = made("mae")
    said = export_run(run, "hf", str(tmp_path / "out")).readme
    reason = "transformers.ViTModel cannot be imported (RuntimeError: operator torchvision::nms does not exist)"
    assert f"| checked | not checked: {reason} |" in said
    with pytest.raises(UserError, match=re.escape(f"--check: {reason}: install it")):
        export_run(run, "hf", str(tmp_path / "other"), check=True)
    sys.modules.pop("transformers")


def test_a_library_that_cannot_run_an_export_is_an_error_in_one_line(tmp_path, monkeypatch):
    library("timm")
    broken = dataclasses.replace(FORMATS["timm"], feature=lambda p: "model(images, 1, 2, 3)")
    monkeypatch.setitem(FORMATS, "timm", broken)
    with pytest.raises(UserError, match=r"timm cannot load or run the export \(TypeError: .*write --nocheck") as caught:
        export_run(made("mae"), "timm", str(tmp_path / "out"), check=True)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


WITHOUT_TORCH = """
import sys
for name in ("torch", "timm", "torchvision", "transformers"):
    sys.modules[name] = None
from maskcl_jax.interchange.exporting import export, export_run
for format in sys.argv[2].split(","):
    assert "not checked: torch is not installed" in export(sys.argv[1], format, f"{sys.argv[1]}_{format}")
from maskcl_jax.errors import UserError
try:
    export(sys.argv[1], "timm", f"{sys.argv[1]}_checked", check=True)
except UserError as error:
    print(error)
assert not {"tensorflow", "torch.nn"} & sys.modules.keys()
"""


def test_torch_is_not_needed(tmp_path):
    write_run(tmp_path / "run", "mae")
    arguments = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "run"), "timm,hf,mae,cmae,mmpretrain"]
    done = subprocess.run(arguments, env=environment(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("--check: torch is not installed")
    found = torch().load(f"{tmp_path / 'run_mae'}/checkpoint.pth", weights_only=True, mmap=True)["model"]
    assert found["pos_embed"].shape == (1, 17, 32)
    assert not (tmp_path / "run_checked").exists()


SIZES = [("Ti/16", (224, 224), 3), ("S/8", (96, 128), 1), ("B/16", (224, 160), 4), ("L/16", (224, 224), 3)]


@pytest.mark.skipif(
    "FULL_SIZE" not in os.environ, reason="minutes and gigabytes: FULL_SIZE=1 pytest -k published_sizes"
)
@pytest.mark.parametrize("feature", ["mean", "cls"])
@pytest.mark.parametrize(("variant", "size", "channels"), SIZES)
def test_published_sizes(variant, size, channels, feature, strict, tmp_path, capsys):
    library("timm")
    config = tiny("mae", **{"data.image_size": size, "data.channels": channels, "eval.feature": feature})
    config.data.mean, config.data.std, config.model = (0.4,), (0.3,), encoder_size(variant)
    formats = ["timm", "mae"] + (["hf"] if has_transformers() else [])
    for folder in exports(run_of(config), formats, tmp_path):
        with capsys.disabled():
            print(
                f"\n{variant} {size} {feature}:",
                re.search(r"checked \| (.*) \|", (folder / "README.md").read_text())[1],
            )
