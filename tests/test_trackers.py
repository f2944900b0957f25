"""Metrics in Weights & Biases, Trackio and MLflow: with stand-ins that record calls, and for real where installed.

CI does not install them (1 GB, two minutes). The tests against the libraries themselves passed with wandb 0.31.0,
trackio 0.43.0 and mlflow 3.17.2 on 2026-11-29: `pip install -e '.[test,wandb,trackio,mlflow]'`.
"""

import importlib.util
import inspect
import pathlib
import re
import sys

import numpy as np
import pytest
from helpers.tiny import tiny
from stand_ins import mlflow_like, wandb_like

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.training import logging, loop, trackers

CONFIG = {"log.project": "birds", "epochs": 3, "optimizer.base_lr": 0.5}
FIGURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def write(folder, name):
    """A run that is broken off after step 2 and goes on after step 1."""
    for steps, resume_step in (((1, 2), 0), ((2, 3), 1)):
        writers = logging.Writers(folder, resume_step=resume_step, to=(name,), config=CONFIG)
        for step in steps:
            writers.write_scalars(step, {"loss": 1.0 / step})
        writers.write_images(steps[-1], {"pictures": FIGURE})
        writers.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_and_its_continuation_are_one_run_there(name, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, name, wandb_like(calls))
    (tmp_path / "blue").mkdir()
    write(tmp_path / "blue", name)
    first, again = (call for call in calls if call[0] == "init")
    assert first[1:4] == ("birds", "blue", CONFIG) and again[4] == "allow"
    assert [call[1:] for call in calls if call[0] == "log" and "loss" in call[2]] == [
        (1, {"loss": 1.0}),
        (2, {"loss": 0.5}),
        (2, {"loss": 0.5}),
        (3, {"loss": 1 / 3}),
    ]
    figures = [call[2]["pictures"] for call in calls if call[0] == "log" and "pictures" in call[2]]
    image = ("image", FIGURE.shape)
    assert figures == [[image] if name == "wandb" else image] * 2
    assert calls[-1] == ("finish",) and not list((tmp_path / "blue").glob("events*"))
    if name == "wandb":
        assert again[5]["id"] == "blue"


def test_mlflow_keeps_fields_metrics_and_figures(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "mlflow", mlflow_like(calls))
    write(tmp_path, "mlflow")
    assert ("run", "7", tmp_path.name) in calls and ("again", "abc", "RUNNING") in calls
    assert ("param", "abc", "optimizer.base_lr", "0.5") in calls
    assert [call for call in calls if call[0] == "metric"][-1] == ("metric", "abc", "loss", 1 / 3, 3)
    assert ("image", "abc", FIGURE.shape, "pictures/step_00000003_0.png") in calls
    assert calls[-1] == ("end", "abc")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            "wandd",
            r"log\.to=wandd is unknown, did you mean 'wandb'\?: use tensorboard, wandb, trackio, mlflow",
        ),
        (
            "trackio",
            r"log\.to=trackio: trackio is not installed: pip install 'maskcl_jax\[trackio\]'",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(names, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = tiny("mae")
    config_lib.set_field(config, "log.to", f"tensorboard,{names}", written="")
    with pytest.raises(UserError, match=words):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_library_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    broken = wandb_like([])
    broken.init = lambda **options: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with pytest.raises(UserError, match=r"log\.to=wandb: it cannot start \(ZeroDivisionError: division by zero\)"):
        logging.Writers(tmp_path, to=("wandb",), config=CONFIG)


def test_nothing_but_the_folder(tmp_path):
    writers = logging.Writers(tmp_path, to=())
    writers.write_scalars(1, {"loss": 1.0})
    writers.write_images(1, {"pictures": FIGURE})
    writers.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("kind", trackers.TRACKERS.values())
def test_the_writers_follow_clus_interface(kind):
    """Read from its file: importing `clu.metric_writers` needs TensorFlow."""
    (folder,) = importlib.util.find_spec("clu").submodule_search_locations
    spec = importlib.util.spec_from_file_location("interface", f"{folder}/metric_writers/interface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    interface = module.MetricWriter
    for name in ("write_scalars", "write_images", "flush", "close"):
        ours, theirs = (list(inspect.signature(getattr(c, name)).parameters) for c in (kind, interface))
        assert ours == theirs, name


def test_every_tracker_has_its_extra():
    setup = (pathlib.Path(__file__).parents[1] / "setup.py").read_text()
    assert all(re.search(rf'^    "{name}": \[', setup, re.MULTILINE) for name in trackers.TRACKERS)


def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, "wandb")
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2 and all(file.stat().st_size for file in files)
    assert len({file.name for file in files}) == 1  # one id
    assert list(tmp_path.glob("wandb/**/media/images/*.png"))
    writers = logging.Writers(tmp_path, resume_step=3, to=("wandb",), config=CONFIG)
    (writer,) = writers.writers
    assert (writer.run.config["epochs"], writer.run.project) == (3, "birds")
    writers.close()


def test_trackio_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage", exc_type=ImportError).SQLiteStorage
    write(tmp_path, "trackio")
    (name,) = storage.get_runs("birds")
    logged = storage.get_logs("birds", name)
    assert {(row["step"], row["loss"]) for row in logged if "loss" in row} == {(1, 1.0), (2, 0.5), (3, 1 / 3)}
    assert any("pictures" in row for row in logged)


def test_mlflow_itself(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the default, a database, needs more than the client
    write(tmp_path, "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("birds").experiment_id])
    assert run.data.params["epochs"] == "3" and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")][-1] == (3, 1 / 3)
    assert {a.path for a in client.list_artifacts(run.info.run_id, "pictures")} >= {"pictures/step_00000003_0.png"}
