"""What a finished piece measured: rows for results.json, read from the files of the run."""

import datetime
import json
import pathlib
import shlex
from typing import Any

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import results
from maskcl_jax.study.pieces import Piece
from maskcl_jax.study.results import commit
from maskcl_jax.training import run_folder


def shared(piece: Piece) -> dict[str, Any]:
    """What every row says of its origin."""
    row = {"key": piece.key, "entry": piece.entry, "seed": piece.seed, "command": piece.command}
    return row | {"date": datetime.date.today().isoformat(), "commit": commit()}


def run_row(piece: Piece, run: pathlib.Path, cost: dict[str, Any]) -> dict[str, Any]:
    """The row of a training: its cost, its images, and its online figures against steps.

    Args:
        piece: The training.
        run: Its folder.
        cost: {seconds, cpu_seconds} over all attempts, with start and compilation.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps, batch_size = max(line["step"] for line in lines), run_folder.read_config(str(run))["batch_size"]
    costs = sorted(line["cpu_seconds_per_image"] for line in lines if line.get("cpu_seconds_per_image"))
    curve = [
        {name: line[name] for name in ("step", "knn_accuracy", "linear_accuracy") if name in line}
        for line in lines
        if "knn_accuracy" in line
    ]
    losses = [line["loss"] for line in lines if "loss" in line]
    return shared(piece) | {
        "steps": steps,
        "images": steps * batch_size,
        "seconds": round(cost["seconds"], 1),
        "cpu_seconds": round(cost["cpu_seconds"], 1),
        "cpu_seconds_per_image": costs[len(costs) // 2] if costs else None,  # of the steps only
        "loss": [losses[0], losses[-1]] if losses else None,
        "curve": curve,
    }


def figure_rows(piece: Piece, run: pathlib.Path, words: list[str]) -> list[dict[str, Any]]:
    """The rows of an evaluation, one for each figure.

    Args:
        piece: The evaluation.
        run: The run's folder.
        words: The command as it ran, by which its records are found.

    Raises:
        UserError: It left no record.
    """
    command = shlex.join(["python", "-m", *words])
    records = [record for record in results.read_all(str(run)) if record["command"] == command]
    rows = []
    for record in records:
        for values in record["values"]["entries"]:
            score = values["accuracy"] if "accuracy" in values else values["miou"]
            row = shared(piece) | {"figure": figure_name(record, values), "value": round(100 * score, 3)}
            kept = ("low", "high", "n_train", "n_test", "correct", "pixels")
            rows.append(row | {name: values[name] for name in kept if name in values})
    if not rows:
        raise UserError(f"{run}/evaluate holds no record of {command}: remove the run's folder and start again")
    return rows


def figure_name(record: dict[str, Any], values: dict[str, Any]) -> str:
    """What a figure is called in tables: k-NN, linear, linear 1%, fine-tuned 10%, mIoU, ..."""
    protocol = record["protocol"]
    if protocol == "knn":
        return "k-NN" if values["k"] == 20 else f"k-NN of {values['k']}"
    if protocol == "segment":
        return "mIoU"
    name = {"logistic": "linear", "lowshot": "linear", "linear": f"linear {record['recipe']}"}.get(
        protocol, "fine-tuned"
    )
    return name if record["labels"] == "all" else f"{name} {record['labels']}"
