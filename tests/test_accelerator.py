"""The benchmark of an accelerator: its parts at toy size on a CPU, and how a call goes on where the last one ended."""

import json
import sys

import pytest
from helpers.tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import accelerator
import accelerator_parts
import our_parts


@pytest.fixture
def measured(monkeypatch):
    """Instead of measuring: the parts that were asked for, in order; those of a batch over 512 need too much memory."""
    asked = []

    def one(name, flags, limit):
        asked.append(name)
        if accelerator_parts.split_batch(name)[1] > 512:
            return {"error": "out of memory"}
        speed = 200.0 if name.startswith("torch/") else 300.0
        return {"images_per_second": speed, "mfu": 0.5, "date": "today", "platform": "a chip"}

    monkeypatch.setattr(accelerator, "one", one)
    return asked


def test_a_call_goes_on_where_the_last_one_ended(measured, monkeypatch, tmp_path):
    path, names = tmp_path / "chip.json", accelerator_parts.names(toy=False)
    assert len(names) == len(set(names))
    assert accelerator.work(path, {}, names, [], seconds=0) == names
    assert not measured
    done = {}
    assert accelerator.work(path, done, names[:3], [], seconds=100) == []
    done = accelerator.read(path)
    assert list(done) == names[:3]
    left = accelerator.work(path, done, names, [], seconds=100)
    assert left == [] and list(accelerator.read(path)) == names
    assert measured.count(names[0]) == 1
    # A batch of 1024 needs too much memory: 2048 is not tried.
    assert "step/mae/plain/xla/1024" in measured and "step/mae/plain/xla/2048" not in measured
    assert done["step/mae/plain/xla/2048"]["error"] == "out of memory, as step/mae/plain/xla/1024"


def test_the_time_may_end_within_a_part(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "one", lambda name, flags, limit: None)
    assert accelerator.work(tmp_path / "chip.json", {}, ["verify", "resume"], [], seconds=100) == ["verify", "resume"]
    assert not (tmp_path / "chip.json").exists()


def test_the_table_has_the_ratio_and_the_reasons():
    row = {"images_per_second": 300.0, "mfu": 0.412, "peak_bytes": 2**31, "date": "today", "platform": "a chip"}
    text = accelerator.table(
        {
            "torch/mae/256": {"images_per_second": 200.0},
            "step/mae/plain/xla/256": row,
            "step/mae/plain/xla/512": row,
            "verify": {"text": "all within"},
            "cifar10": {"error": "no file"},
        }
    )
    lines = text.splitlines()
    assert lines[3] == "| step/mae/plain/xla/256 | 300 | 41.2% | 2.0 GiB |  | 1.50 | today, a chip |"
    assert "1.50" not in lines[4]
    assert "all within" in lines[5] and "no file" in lines[6]


def test_a_part_that_fails_says_why_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accelerator.py", f"--json={tmp_path / 'a.json'}", "--toy", "--only=cifar10"])
    accelerator.main()
    error = accelerator.read(tmp_path / "a.json")["cifar10"]["error"]
    assert "--cifar10=FILE.npz" in error
    assert error in capsys.readouterr().out


def test_a_step_of_ours():
    row = our_parts.measure("step/mae/plain/xla/8", toy=True, cifar10="")
    assert row["images_per_second"] > 0 and row["compile_seconds"] > 0
    json.dumps(row)


def test_a_step_of_pytorchs():
    pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    import torch
    import torch_parts

    row = torch_parts.measure("torch/moco_v2/8", toy=True, cifar10="")
    torch.set_default_device(None)
    assert row["images_per_second"] > 0 and "torch" in row["platform"]


def test_every_part_has_a_config_or_a_model():
    for name in accelerator_parts.names(toy=True):
        if name.startswith("step/"):
            our_parts.config_of(name.split("/")[1], 8, toy=True)
            our_parts.config_of(name.split("/")[1], 256, toy=False)
    for name in accelerator_parts.names(toy=False):
        other = accelerator_parts.counterpart(name)
        model = name.split("/")[1] if name.startswith("step/") else ""
        assert (other in accelerator_parts.names(toy=False)) == (model in accelerator_parts.IN_TORCH)
