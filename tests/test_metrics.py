"""Meter, throughput, live line, metric files."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskcl_jax.errors import Diverged
from maskcl_jax.training import metrics


def test_metrics_come_one_step_late():
    meter = metrics.Meter()
    assert meter.push(1, {"loss": jnp.asarray(0.5)}) is None
    assert meter.push(2, {"loss": jnp.asarray(0.25)}) == (1, {"loss": 0.5})
    assert meter.flush() == (2, {"loss": 0.25})
    assert meter.flush() is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_named(value):
    meter = metrics.Meter()
    meter.push(7, {"loss_rec": jnp.asarray(value), "attention_entropy": jnp.asarray(np.nan)})
    with pytest.raises(Diverged, match=r"loss_rec is (nan|inf) at step 7"):
        meter.flush()


def test_throughput_leaves_out_the_first_step_and_pauses():
    now = [0.0]
    rate = metrics.Throughput(10, clock=lambda: now[0])
    now[0] = 30.0  # compilation
    rate.step()
    assert rate.images_per_second() == 0.0
    for _ in range(4):
        now[0] += 2.0
        rate.step()
        with rate.paused():
            now[0] += 100.0
    assert rate.images_per_second() == pytest.approx(5.0)
    assert rate.overall() == pytest.approx(5.0)
    assert rate.eta(6) == pytest.approx(12.0)


def test_throughput_tells_what_waits_for_data_and_what_of_the_peak_is_used():
    now = [0.0]
    rate = metrics.Throughput(10, flops_per_image=3.0, peak=60.0, clock=lambda: now[0])
    for _ in range(4):
        with rate.waiting():
            now[0] += 0.5
        now[0] += 1.5
        rate.step()
    assert rate.data_wait() == pytest.approx(0.25)
    assert rate.data_wait(2) == pytest.approx(0.25)
    row = rate.scalars()
    assert row["images_per_second"] == pytest.approx(5.0)
    assert row["images_per_second_per_device"] == pytest.approx(5.0 / jax.device_count())
    assert row["mfu"] == pytest.approx(5.0 * 3.0 / 60.0)
    assert "mfu" not in metrics.Throughput(10).scalars() and metrics.Throughput(10).mfu(5.0) is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(line, step):
    line.update(step, {"loss": 0.5, "feature_std": 1.0}, images_per_second=12.0, eta=75.0)


def test_a_terminal_has_one_line_that_says_does_not_garble():
    stream = Terminal()
    line = metrics.LiveLine(10, every_steps=5, every_seconds=100.0, stream=stream)
    shown(line, 1)
    shown(line, 2)
    line.say("hello")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.split("\r\033[K")[1:] == [
        "1/10  loss 0.5000  12 images/s  ETA 1m15s",
        "2/10  loss 0.5000  12 images/s  ETA 1m15s",
        "hello\n2/10  loss 0.5000  12 images/s  ETA 1m15s",
    ]


def test_elsewhere_there_are_plain_lines_now_and_then():
    stream = io.StringIO()
    line = metrics.LiveLine(10, every_steps=2, every_seconds=0.0, stream=stream)
    for step in range(1, 11):
        shown(line, step)
    assert [row.split("/")[0] for row in stream.getvalue().splitlines()] == ["1", "2", "4", "6", "8", "10"]
    assert "\r" not in stream.getvalue()


def test_quiet_is_quiet():
    stream = io.StringIO()
    line = metrics.LiveLine(10, every_steps=1, every_seconds=0.0, quiet=True, stream=stream)
    shown(line, 1)
    line.say("hello")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(5.2, "5s"), (75, "1m15s"), (3600 * 30 + 60 * 7, "30h07m")])
def test_durations(seconds, text):
    assert metrics.duration(seconds) == text


def test_rows_are_json_and_a_resumed_run_drops_what_is_lost(tmp_path):
    writers = metrics.create_writers(str(tmp_path))
    for step in (1, 2, 3):
        writers.write_scalars(step, {"loss": step / 10})
    writers.write_images(3, {"pictures": np.zeros((4, 4, 3), np.uint8)})
    writers.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a row
    writers = metrics.create_writers(str(tmp_path), resume_step=2)
    writers.write_scalars(3, {"loss": 9.0})
    writers.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 9.0}]
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_the_fallback_to_the_cpu_is_told_loudly(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    warning = metrics.accelerator_fallback(present=lambda: ["/dev/nvidia0"])
    assert "FELL BACK TO THE CPU" in warning
    assert "/dev/nvidia0" in warning
    assert metrics.accelerator_fallback(present=list) is None
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert metrics.accelerator_fallback(present=lambda: ["/dev/nvidia0"]) is None


def test_the_summary_is_aligned():
    lines = metrics.summary_table({"loss": "1", "images/s": "2"}).splitlines()
    assert lines[1] == "loss      1"
    assert lines[2] == "images/s  2"


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def attempt(workdir, steps, *, loss, resume_step=0):
    writers = metrics.create_writers(str(workdir), resume_step=resume_step)
    for step in steps:
        writers.write_scalars(step, {"loss": loss})
    writers.close()


def test_a_run_that_begins_again_keeps_no_row(tmp_path):
    attempt(tmp_path, range(3), loss=1.0)
    attempt(tmp_path, range(2), loss=2.0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(0, 2.0), (1, 2.0)]


def test_rows_are_dropped_whole_or_not_at_all(tmp_path, monkeypatch):
    attempt(tmp_path, range(3), loss=1.0)
    before = rows(tmp_path)

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        metrics.create_writers(str(tmp_path), resume_step=1)
    assert rows(tmp_path) == before


def test_what_is_not_finite_is_null(tmp_path):
    attempt(tmp_path, [1], loss=float("inf"))
    assert rows(tmp_path) == [{"step": 1, "loss": None}]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    attempt(tmp_path, range(3), loss=1.0)
    assert not list(tmp_path.iterdir())


def test_the_last_line_stays_and_nothing_is_written_onto_it():
    stream, now = Terminal(), [0.0]
    line = metrics.LiveLine(10, every_steps=5, every_seconds=1.0, stream=stream, clock=lambda: now[0])
    now[0] = 75.0
    line.update(10, {"loss": 0.5}, images_per_second=1, eta=0)
    line.say("table")
    assert stream.getvalue().split("\r\033[K")[1:] == ["10/10  loss 0.5000  1 images/s  took 1m15s\n", "table\n"]


def test_the_live_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "20")
    stream = Terminal()
    line = metrics.LiveLine(10, every_steps=5, every_seconds=1.0, stream=stream)
    line.update(2, {"loss": 0.5, "loss_rec": 0.25}, images_per_second=1, eta=1)
    assert stream.getvalue() == "\r\033[K" + "2/10  loss 0.5000  loss_rec"[:19]


@pytest.mark.parametrize("missing", ["tensorflow", "clu"])
def test_without_tensorflow_or_clu_the_rows_are_still_written(missing, tmp_path):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import numpy as np
from maskcl_jax import metrics
from maskcl_jax.errors import Diverged
writers = metrics.create_writers({str(tmp_path)!r})
writers.write_scalars(1, {{"loss": 0.5}})
writers.write_images(1, {{"picture": np.zeros((2, 2, 3), np.uint8)}})
writers.close()
print(metrics.parameter_overview({{"a": np.zeros((30, 40))}}))
"""
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(metrics.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no TensorBoard files, only metrics.jsonl") == 1
    assert "1,200" in done.stdout
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(("stats", "peak"), [([None], None), ([{"peak_bytes_in_use": 7}, {"peak_bytes_in_use": 9}], 9)])
def test_memory_is_the_peak_of_the_fullest_device(stats, peak, monkeypatch):
    devices = [type("Device", (), {"memory_stats": lambda self, s=s: s})() for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert metrics.memory_in_use() == peak


@pytest.mark.parametrize(
    ("files", "tpu", "found"),
    [
        (["nvidia0", "nvidiactl"], False, ["nvidia0"]),
        (["accel0"], False, ["accel0"]),
        (["vfio/0", "vfio/vfio"], False, []),
        (["vfio/0", "vfio/vfio"], True, ["vfio/0"]),
    ],
)
def test_accelerators_are_found_by_their_device_files(files, tpu, found, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    if tpu:
        monkeypatch.setenv("TPU_WORKER_ID", "0")
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert metrics.accelerators_present(tmp_path) == [str(tmp_path / name) for name in found]


def test_accelerators_are_found_by_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert metrics.accelerators_present(tmp_path / "dev") == ["GPU 0: NVIDIA H200"]
