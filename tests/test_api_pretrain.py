"""`mc.pretrain`: its arguments are the command's fields, and the same call continues a run."""

import os
import signal

import numpy as np
import pytest

import maskcl_jax as mc
from maskcl_jax import cli
from maskcl_jax import config as config_lib
from maskcl_jax.api import fields
from maskcl_jax.methods.ccmim import CCMIM
from maskcl_jax.training import throughput

# A run of a few steps on images of 16 x 16 pixels.
SHORT = {
    "model": {"width": 16, "depth": 1, "heads": 2, "patch_size": 8},
    "method.decoder": {"width": 16, "depth": 1, "heads": 2},
    "batch_size": 8,
    "total_steps": 4,
    "eval": {"every_epochs": 0.0, "pictures": 0, "batch_size": 8},
    "log": {"every_steps": 1, "report": False},
}


class MyCCMIM(CCMIM):
    """A method of the user's, which inherits from one of the package."""


def test_fields_are_those_of_the_command_line():
    chosen = fields.choose("synthetic", "")
    given = {"epochs": 3, "variant": "Ti/8", "base_lr": np.float32(0.5), "optimizer": {"b2": 0.9}, "image_size": 64}
    ours = fields.config_of("ccmim", chosen, given | {"method.importance_layers": [0, -1]})
    flags = ["--config=ccmim:synthetic,variant=Ti/8,image_size=64", "--config.epochs=3"]
    flags += [
        f"--config.{text}" for text in ("optimizer.base_lr=0.5", "optimizer.b2=0.9", "method.importance_layers=0,-1")
    ]
    _, overrides = cli.split_overrides(flags)
    theirs = config_lib.load("ccmim", "synthetic,variant=Ti/8,image_size=64")
    for name, text in overrides.items():
        config_lib.set_field(theirs, name, text, written=text)
    assert config_lib.flat(ours) == config_lib.flat(theirs)


def test_kinds_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    gray = np.zeros((5, 28, 28), np.uint8) + np.uint8(51)
    cases = {
        "folder": fields.choose("photos", ""),
        "small": fields.choose(tmp_path / "photos", "embedded"),
        "gray": fields.choose((gray, np.arange(5)), ""),
        "large": fields.choose(np.zeros((2, 100, 90, 3), np.uint8), ""),
        "other": fields.choose("cifar10", "embedded"),
    }
    c = {name: fields.config_of("mae", chosen, {}) for name, chosen in cases.items()}
    assert [c[name].preset for name in c] == ["folder", "embedded", "embedded", "folder", "embedded"]
    assert c["folder"].data.path == c["small"].data.path == str(tmp_path / "photos")
    assert c["folder"].data.image_size == (224, 224) and c["small"].data.image_size == (32, 32)
    assert (c["gray"].data.image_size, c["gray"].data.channels, c["gray"].data.mean) == ((28, 28), 1, (0.2,))
    assert c["large"].data.image_size == (224, 224) and c["other"].data.name == "cifar10"
    own = fields.config_of(MyCCMIM, fields.choose("embedded", ""), {})
    assert own.method.name == f"{__name__}:MyCCMIM" and "align_weight" in own.method


def test_errors_name_arguments_and_leave_paths_and_commands_alone():
    said = "--workdir=runs/mae--full, --config=/data/a--b.py: give --full, --nocheck or --config.model.heads=2"
    command = "; or python -m maskcl_jax.export --full --config=FILE"
    with pytest.raises(mc.UserError) as caught, fields.in_words_of_python():
        raise mc.UserError(said + command)
    words = "workdir=runs/mae--full, method=/data/a--b.py: give full=True, check=False or model.heads=2"
    assert str(caught.value) == words + command


class Interrupting(throughput.Throughput):
    """Presses Ctrl-C in the second step of a run; counts the steps of all runs."""

    steps, at = 0, 2

    def step(self):
        type(self).steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        super().step()


def test_an_interrupted_run_on_arrays_is_continued_by_the_same_call(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    labels, folder = np.arange(32) % 4, tmp_path / "run"
    with_report = SHORT | {"log": {"every_steps": 1, "report": True}}
    monkeypatch.setattr(throughput, "Throughput", Interrupting)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on there"):
        mc.pretrain("mae", (images, labels), folder, **with_report)
    assert mc.Run(folder).step == 2 and not (folder / "report.html").exists()
    run = mc.pretrain("mae", (images, labels), folder, **with_report)
    assert Interrupting.steps == 4 and run.step == 4
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"report: {folder}/report.html (")
    assert "</html>" in (folder / "report.html").read_text()
    np.testing.assert_array_equal(run.metrics["loss"].steps, [1, 2, 3, 4])
    assert np.isfinite(run.metrics["loss"].values).all()
    # Other images are another run, whether given by the call or put in the file's place.
    other = images.copy()
    other[0, 0, 0, 0] ^= 1
    with pytest.raises(mc.UserError, match=r"data\.npz holds other images than those given"):
        mc.pretrain("mae", (other, labels), folder, **with_report)
    np.savez(folder / "data.npz", train_images=other, train_labels=labels)
    with pytest.raises(mc.UserError, match=r"was started on other data .*or other pixels"):
        mc.pretrain("mae", (other, labels), folder, **with_report)
