"""Every entry point runs where TensorFlow cannot be imported, on a data set that TFDS prepared."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers import prepared
from helpers.tiny import fields_of
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
HIDE = "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'tensorflow_datasets')))"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(function that runs a module, folder)."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    (folder / "hidden").mkdir()
    (folder / "hidden" / "sitecustomize.py").write_text(HIDE)
    rows = []
    for i in range(24):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": i % 2})
    prepared.write(folder / "tiny", {"train": [rows[:16], rows[16:]], "test": [rows]}, shape=(32, 32, 3))
    env = os.environ | {"PYTHONPATH": f"{folder / 'hidden'}:{ROOT}", "XDG_CACHE_HOME": str(folder / "cache")}

    def start(module, *arguments):
        command = [sys.executable, "-m", f"maskcl_jax.{module}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    values = {**fields_of("mae"), "data.source": "tfds", "data.name": "tiny", "data.data_dir": folder, "total_steps": 2}
    values |= {"batch_size": 8, "eval.batch_size": 8, "eval.k": 3}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    start("main", "--config=configs/mae.py:synthetic", f"--workdir={folder / 'work'}", *flags)
    return start, folder


@pytest.mark.parametrize(
    "module, arguments",
    [
        ("evaluate", ["--workdir=WORK", "--protocol=knn", "--config.k=3", "--config.batch_size=8"]),
        ("export", ["--workdir=WORK", "--format=timm", "--out=OUT"]),
        ("report", ["WORK"]),
    ],
)
def test_what_starts_from_a_run(run, module, arguments):
    start, folder = run
    work = folder / "work"
    start(module, *(a.replace("OUT", str(folder / "out")).replace("WORK", str(work)) for a in arguments))


def test_a_data_set_becomes_an_array(run):
    start, folder = run
    out = folder / "tiny.npz"
    said = start("data.to_array", "--data=cifar10", "--name=tiny", f"--data_dir={folder}", f"--out={out}")
    assert "train: 24 images of 32x32x3" in said
    assert np.load(out)["train_labels"].tolist() == [0, 1] * 12
