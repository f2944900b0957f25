"""The model of an epoch on many chips: its parts by closed forms."""

import sys

import pytest
from helpers.tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import scale_model

from maskcl_jax.performance.devices import CHIPS

CHIP = next(chip for chip in CHIPS if chip.name == "v5e")
ALL_REACHED = scale_model.Assumed(of_bound=1.0, host_efficiency=1.0, checkpoint=1e9)
PROGRAM = {
    "batch": 1024,
    "epoch_images": 10 * 1024 + 5,
    "matrix_flops_per_image": CHIP.bf16_flops / 64,  # a chip computes 64 images/s
    "parameters": 10**6,
    "state_bytes": 2 * 10**9,
    "checkpoints_per_epoch": 0.5,
    "input": "one view",
    "epochs": 3,
}


def test_an_epoch_takes_its_steps_and_checkpoints():
    found = scale_model.epoch(PROGRAM, "v5e", 16, ALL_REACHED)
    assert found.parts["FLOPs"] == pytest.approx(1.0)
    assert found.parts["all-reduce"] == pytest.approx(2 * 15 / 16 * 2e6 / 200e9)
    assert found.parts["input"] == pytest.approx(1024 / (2 * 224 * 731))
    assert found.seconds == pytest.approx(10 * (1.0 + found.parts["all-reduce"]) + 1.0)
    assert found.limit == "FLOPs"
    assert found.chip_hours == pytest.approx(found.seconds * 16 / 3600)


def test_four_times_the_chips_take_a_quarter_of_the_flops():
    few, many = (scale_model.epoch(PROGRAM, "v5e", chips, ALL_REACHED) for chips in (16, 64))
    assert many.parts["FLOPs"] == pytest.approx(few.parts["FLOPs"] / 4)
    assert many.parts["input"] == pytest.approx(few.parts["input"] / 4)


def test_bytes_of_the_state_do_not_shrink_with_the_images():
    program = PROGRAM | {"bytes_per_step": 106e9, "images_per_chip": 64}  # 6 GB of the state
    whole, quarter = (scale_model.epoch(program, "v5e", chips, ALL_REACHED).parts["bytes"] for chips in (16, 64))
    assert whole == pytest.approx(106e9 / CHIP.hbm_bandwidth)
    assert quarter == pytest.approx((6e9 + 25e9) / CHIP.hbm_bandwidth)


@pytest.mark.parametrize(
    ("changes", "assumed", "limit"),
    [
        ({"bytes_per_step": 1e13, "images_per_chip": 64}, ALL_REACHED, "bytes"),
        ({"parameters": 10**12}, ALL_REACHED, "all-reduce"),
        ({}, scale_model.Assumed(of_bound=1.0, host_efficiency=1e-3, checkpoint=1e9), "input"),
        ({}, scale_model.Assumed(of_bound=1.0, host_efficiency=1.0, checkpoint=1e6), "checkpoints"),
    ],
)
def test_what_limits(changes, assumed, limit):
    assert scale_model.epoch(PROGRAM | changes, "v5e", 16, assumed).limit == limit


def test_a_batch_smaller_than_the_chips_has_no_row():
    assert scale_model.epoch(PROGRAM | {"batch": 8}, "v5e", 16, ALL_REACHED) is None
    text = scale_model.table({"mae": PROGRAM | {"batch": 8}}, "v5e", [16], ALL_REACHED, 2.0)
    assert "batch 8 has no image for each" in text


def test_the_table_of_the_programs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale_model.py", "--chips=16,256", "--price=2", "--generation=v6e"])
    scale_model.main()
    lines = capsys.readouterr().out.splitlines()
    assert "price at 2" in lines[0]
    assert sum(line.startswith("| mae |") for line in lines) == 2
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_a_checkpoint_is_measured():
    assert "written" in scale_model.measure(1)
