"""The live line, metrics.jsonl, TensorBoard files."""

import inspect
import io
import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from maskcl_jax.training import logging
from maskcl_jax.training.tensorboard import EventWriter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def update(line, step):
    line.update(step, {"loss": 0.5, "feature_std": 1.0}, images_per_second=12.0, eta=75.0)


def test_a_terminal_has_one_line_that_messages_do_not_garble():
    stream = Terminal()
    line = logging.LiveLine(10, every_steps=5, every_seconds=100.0, stream=stream)
    update(line, 1)
    update(line, 2)
    line.say("hello")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.split("\r\033[K")[1:] == [
        "1/10  loss 0.5000  12 images/s  ETA 1m15s",
        "2/10  loss 0.5000  12 images/s  ETA 1m15s",
        "hello\n2/10  loss 0.5000  12 images/s  ETA 1m15s",
    ]


def test_a_file_gets_plain_lines_every_few_steps():
    stream = io.StringIO()
    line = logging.LiveLine(10, every_steps=2, every_seconds=0.0, stream=stream)
    for step in range(1, 11):
        update(line, step)
    assert [row.split("/")[0] for row in stream.getvalue().splitlines()] == ["1", "2", "4", "6", "8", "10"]
    assert "\r" not in stream.getvalue()


def test_a_file_gets_lines_no_more_often_than_every_few_seconds():
    stream, now = io.StringIO(), [0.0]
    line = logging.LiveLine(100, every_steps=1, every_seconds=3.0, stream=stream, clock=lambda: now[0])
    for step in range(1, 10):
        update(line, step)
        now[0] += 1.0
    assert [row.split("/")[0] for row in stream.getvalue().splitlines()] == ["1", "4", "7"]


def test_quiet_prints_nothing():
    stream = io.StringIO()
    line = logging.LiveLine(10, every_steps=1, every_seconds=0.0, quiet=True, stream=stream)
    update(line, 1)
    line.say("hello")
    assert stream.getvalue() == ""


def test_the_last_line_stays_and_nothing_is_written_over_it():
    stream, now = Terminal(), [0.0]
    line = logging.LiveLine(10, every_steps=5, every_seconds=1.0, stream=stream, clock=lambda: now[0])
    now[0] = 75.0
    line.update(10, {"loss": 0.5}, images_per_second=1, eta=0)
    line.say("table")
    assert stream.getvalue().split("\r\033[K")[1:] == ["10/10  loss 0.5000  1 images/s  took 1m15s\n", "table\n"]


def test_the_live_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "20")
    stream = Terminal()
    line = logging.LiveLine(10, every_steps=5, every_seconds=1.0, stream=stream)
    line.update(2, {"loss": 0.5, "loss_rec": 0.25}, images_per_second=1, eta=1)
    assert stream.getvalue() == "\r\033[K" + "2/10  loss 0.5000  loss_rec"[:19]


@pytest.mark.parametrize(("seconds", "text"), [(5.2, "5s"), (75, "1m15s"), (3600 * 30 + 60 * 7, "30h07m")])
def test_durations(seconds, text):
    assert logging.duration(seconds) == text


def test_the_summary_is_aligned():
    lines = logging.summary_table({"loss": "1", "images/s": "2"}).splitlines()
    assert lines[1] == "loss      1"
    assert lines[2] == "images/s  2"


def test_parameters_are_counted_by_network():
    encoder = {"norm": {"scale": np.zeros(3)}, "dense": {"kernel": np.zeros((30, 40))}}
    params = {"encoder": encoder, "decoder": {"kernel": np.zeros((2, 5))}}
    assert logging.parameter_overview(params) == "1,213 parameters: encoder 1,203, decoder 10"


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, steps, *, loss, resume_step=0):
    writers = logging.Writers(workdir, resume_step=resume_step)
    for step in steps:
        writers.write_scalars(step, {"loss": loss})
    writers.close()


def test_a_resumed_run_drops_the_rows_after_its_checkpoint(tmp_path):
    write(tmp_path, (1, 2, 3), loss=0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a row
    write(tmp_path, (3,), loss=9.0, resume_step=2)
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 9.0}]


def test_a_run_that_starts_from_step_0_keeps_no_row(tmp_path):
    write(tmp_path, range(3), loss=1.0)
    write(tmp_path, range(2), loss=2.0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(0, 2.0), (1, 2.0)]


def test_rows_are_dropped_whole_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path, range(3), loss=1.0)
    before = rows(tmp_path)

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logging.Writers(tmp_path, resume_step=1)
    assert rows(tmp_path) == before


def test_what_is_not_finite_is_null(tmp_path):
    write(tmp_path, [1], loss=float("inf"))
    assert rows(tmp_path) == [{"step": 1, "loss": None}]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writers = logging.Writers(tmp_path)
    writers.write_scalars(1, {"loss": 1.0})
    writers.write_images(1, {"figure": np.zeros((2, 2, 3), np.uint8)})
    writers.close()
    assert not list(tmp_path.iterdir())


def tensors(folder, tag):
    """(step, array) of a tag, as TensorBoard reads it."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]


def test_tensorboard_reads_scalars_and_images(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    writers = logging.Writers(tmp_path)
    writers.write_scalars(3, {"loss": 0.125, "knn_accuracy": 50.0})
    writers.write_scalars(7, {"loss": math.nan})
    writers.write_images(7, {"figure": image})
    writers.close()
    assert tensors(tmp_path, "knn_accuracy") == [(3, 50.0)]
    (first, second) = tensors(tmp_path, "loss")
    assert first == (3, 0.125)
    assert second[0] == 7 and np.isnan(second[1])
    ((step, (width, height, png)),) = tensors(tmp_path, "figure")
    assert (step, width, height) == (7, b"6", b"4")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    events = EventAccumulator(str(tmp_path)).Reload()
    plugins = {tag: events.SummaryMetadata(tag).plugin_data.plugin_name for tag in events.Tags()["tensors"]}
    assert plugins == {"loss": "scalars", "knn_accuracy": "scalars", "figure": "images"}


def test_what_was_written_can_be_read_while_the_run_goes_on(tmp_path):
    writers = logging.Writers(tmp_path)
    writers.write_scalars(1, {"loss": 0.5})
    assert tensors(tmp_path, "loss") == [(1, 0.5)]
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}]
    writers.close()


def test_the_event_writer_follows_clus_interface():
    interface = pytest.importorskip("clu.metric_writers", reason="clu.metric_writers needs TensorFlow").MetricWriter
    for name in ("write_scalars", "write_images", "flush", "close"):
        ours, theirs = (list(inspect.signature(getattr(c, name)).parameters) for c in (EventWriter, interface))
        assert ours == theirs, name


def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path):
    code = f"""
import sys
import numpy as np
from maskcl_jax.training import logging
writers = logging.Writers({str(tmp_path)!r})
writers.write_scalars(1, {{"loss": 0.5}})
writers.write_images(1, {{"figure": np.zeros((2, 2, 3), np.uint8)}})
writers.close()
print(logging.parameter_overview({{"a": np.zeros((30, 40))}}))
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1,200" in done.stdout
    assert tensors(tmp_path, "loss") == [(1, 0.5)]
