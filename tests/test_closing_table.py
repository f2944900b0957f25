"""The table at the end of a run names what exists, and nothing else."""

import pathlib
import types

from helpers.tiny import tiny

from maskcl_jax.training import loop, sharding
from maskcl_jax.training.monitor import Monitor, closing_rows
from maskcl_jax.training.throughput import Throughput


def test_what_a_run_wrote_is_named_and_exists(tmp_path):
    without = loop.train(tiny("mae", **{"eval.pictures": 0, "total_steps": 2}), str(tmp_path / "without"))
    assert "pictures" not in without
    figures = loop.train(tiny("mae", total_steps=2), str(tmp_path / "with"))
    assert list(pathlib.Path(figures["pictures"]).glob("*.png"))
    for rows in (without, figures):
        folder = pathlib.Path(rows["curves"].removeprefix("tensorboard --logdir="))
        assert list(folder.glob("events.out.tfevents.*"))
        assert (pathlib.Path(rows["checkpoint"]) / "2").is_dir()


def test_an_empty_folder_has_neither_pictures_nor_tensorboard_files(tmp_path):
    rows = closing_rows(
        tiny("mae"), str(tmp_path), rate=Throughput(8), skipped=0, monitor=types.SimpleNamespace(problem="", k=20)
    )
    assert not {"pictures", "curves"} & rows.keys()


def test_a_finished_run_without_labels_says_so_though_it_evaluates_nothing(tmp_path):
    source, mesh = types.SimpleNamespace(num_classes=0), sharding.create_mesh()
    monitor = Monitor(tiny("mae"), str(tmp_path), source=source, method=None, mesh=mesh)
    rows = closing_rows(tiny("mae"), str(tmp_path), rate=Throughput(8), skipped=0, monitor=monitor)
    assert rows["k-NN"] == "not measured: the data has no labels"
