"""Every entry point runs where TensorFlow cannot be imported, on a data set that TFDS prepared."""

import io
import os

import numpy as np
from helpers import forks, prepared
from helpers.tiny import ROOT, fields_of
from PIL import Image

HIDE = "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'tensorflow_datasets')))"


def test_every_command_runs_on_a_data_set_that_tfds_prepared(tmp_path):
    """A run is trained, evaluated, exported and reported; the data set becomes one array."""
    rng = np.random.default_rng(0)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDE)
    rows = []
    for i in range(24):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": i % 2})
    prepared.write(tmp_path / "tiny", {"train": [rows[:16], rows[16:]], "test": [rows]}, shape=(32, 32, 3))
    fields = {**fields_of("mae"), "data.source": "tfds", "data.name": "tiny", "data.data_dir": tmp_path}
    fields |= {"total_steps": 2, "batch_size": 8, "eval.batch_size": 8, "eval.k": 3}
    values = [f"--config.{key}={value}" for key, value in fields.items()]
    workdir, out = f"--workdir={tmp_path / 'work'}", tmp_path / "tiny.npz"
    commands = [
        ["main", "--config=configs/mae.py:synthetic", workdir, *values],
        ["evaluate", workdir, "--protocol=knn", "--config.k=3", "--config.batch_size=8"],
        ["export", workdir, "--format=timm", f"--out={tmp_path / 'out'}"],
        ["report", str(tmp_path / "work")],
        ["data.to_array", "--data=cifar10", "--name=tiny", f"--data_dir={tmp_path}", f"--out={out}"],
    ]
    env = os.environ | {"PYTHONPATH": f"{tmp_path / 'hidden'}:{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said = forks.output_of([[f"maskcl_jax.{module}", *words] for module, *words in commands], cwd=ROOT, env=env)
    assert "train: 24 images of 32x32x3" in said
    assert np.load(out)["train_labels"].tolist() == [0, 1] * 12
