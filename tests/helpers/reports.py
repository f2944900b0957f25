"""An example run of which reports are made, and pages of it."""

import json
import pathlib
import sys

import numpy as np
import pytest
from stand_ins import umap_like

from helpers.untrained import write_run
from maskcl_jax.report import look as look_lib
from maskcl_jax.report import page, record
from maskcl_jax.training import visualize

RNG = np.random.default_rng(0)


def write_example(folder: pathlib.Path) -> pathlib.Path:
    """A tiny run with a history."""
    write_run(folder, "ccmim")
    write_history(folder)
    (folder / "events.out.tfevents.1.host").touch()
    return folder


def looked(run: pathlib.Path) -> look_lib.Look:
    """A look at a run, with a second map whether or not umap-learn is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", umap_like([]))
        return look_lib.look(str(run))


def write_pages(folder: pathlib.Path, run: pathlib.Path, look: look_lib.Look) -> pathlib.Path:
    """one.html of one run, three.html of three."""
    one = record.read(str(run), run.name)
    other = one._replace(name="other", config=one.config | {"seed": 5}, not_finite={"loss": 1})
    bare = one._replace(name="bare", curves={}, figures=[], evaluations=[])
    for name, records, looks in (("one", [one], [look]), ("three", [one, other, bare], [look, look, None])):
        text = page.render(page.context(records, looks, ["UMAP"], quick=False, out="x.html"))
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


def write_history(folder: pathlib.Path, *, losses=(3.0, 2.0, 1.5), knn=(20.0, 30.0)) -> None:
    """What a run leaves besides checkpoints: metrics, figures, an evaluation, the closing table."""
    rows = [{"step": 0, "knn_accuracy": knn[0]}]
    rows += [
        {"step": i + 1, "loss": loss, "learning_rate": rate, "images_per_second": 9.0}
        for i, (loss, rate) in enumerate(zip(losses, (0.1, 0.2, 6.5e-10), strict=True))
    ]
    rows += [{"step": len(losses), "knn_accuracy": knn[1]}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    for step in (0, 7):
        columns = {name: RNG.random((2, 32, 32, 3)) for name in ("input", "importance", "masked", "reconstruction")}
        visualize.save_png(folder / "pictures" / f"step_{step:08d}.png", visualize.grid(columns))
    entry = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n_test": 100, "k": 20}
    content = {
        "protocol": "knn",
        "recipe": "",
        "workdir": str(folder),
        "step": 7,
        "network": "online",
        "feature": "mean",
        "labels": "all",
        "data": "synthetic, 64 images",
        "values": {"entries": [entry]},
        "date": "2026-01-01T00:00:00",
        "command": "python -m maskcl_jax.evaluate --protocol=knn",
    }
    (folder / "evaluate").mkdir()
    (folder / "evaluate" / "knn-step7.json").write_text(json.dumps(content))
    (folder / "summary.json").write_text(json.dumps({"data wait": "2.5% of the time of the steps"}))


def write_embeddings(folder: pathlib.Path, name: str, **origin) -> None:
    """What `evaluate --protocol=features` leaves, as far as a report reads it."""
    (folder / "evaluate").mkdir(exist_ok=True)
    text = json.dumps({"step": 7, "network": "online", "split": "train"} | origin)
    np.savez(folder / "evaluate" / f"features-step7-{name}.npz", origin=text)
