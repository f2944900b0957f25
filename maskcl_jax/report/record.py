"""What the folder of a run tells without running its encoder: config, metrics, figures, evaluations."""

import contextlib
import json
import math
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import results
from maskcl_jax.training import run_folder

Points = list[tuple[int, float]]  # (step, value), in order


class Record(NamedTuple):
    """A run as its folder holds it.

    Attributes:
        workdir: The folder, as the user wrote it.
        name: A short name that tells it from the other runs of the page.
        config: Every field, flat; those that the run's version did not have hold their defaults.
        curves: Metric -> its points; what was not finite is missing here,
        not_finite: and counted here, by metric.
        summary: The closing table of a run that came to its end; {} for others.
        evaluations: Records of `evaluate`, by date.
        embeddings: {file, step, network, split} of what `evaluate --protocol=features` wrote.
        figures: (step, file) of the figures, by step.
        checkpoints: Their steps.
    """

    workdir: str
    name: str
    config: dict[str, Any]
    curves: dict[str, Points]
    not_finite: dict[str, int]
    summary: dict[str, str]
    evaluations: list[dict[str, Any]]
    embeddings: list[dict[str, Any]]
    figures: list[tuple[int, pathlib.Path]]
    checkpoints: list[int]

    @property
    def method(self) -> str:
        """The name of its method."""
        return self.config["method.name"]

    @property
    def evaluated(self) -> set[str]:
        """The protocols that were run on the newest checkpoint; those of initial values do not count."""
        made = self.evaluations + [{"protocol": "features"} | file for file in self.embeddings]
        newest = max(self.checkpoints, default=-1)
        return {each["protocol"] for each in made if each["step"] == newest and each["network"] != "random"}

    @property
    def step(self) -> int:
        """The last step that left a trace."""
        return max([0, *self.checkpoints, *(points[-1][0] for points in self.curves.values())])


def read(workdir: str, name: str) -> Record:
    """Reads the folder of a run.

    Raises:
        UserError: It is not the folder of a run, or one that has neither metrics nor a checkpoint yet.
    """
    folder = run_folder.folder_of(workdir)
    config = config_lib.with_defaults(run_folder.read_config(workdir))
    curves, not_finite = read_curves(folder / "metrics.jsonl")
    checkpoints = sorted(int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit())
    if not curves and not checkpoints:
        raise UserError(f"{workdir} is the folder of a run without a metric or a checkpoint: train it first")
    summary = {}
    with contextlib.suppress(OSError, json.JSONDecodeError):
        summary = json.loads((folder / run_folder.SUMMARY).read_text())
    figures = sorted((int(path.stem.removeprefix("step_")), path) for path in folder.glob("pictures/step_*.png"))
    evaluations, embeddings = results.records(workdir), embeddings_in(folder / "evaluate")
    return Record(workdir, name, config, curves, not_finite, summary, evaluations, embeddings, figures, checkpoints)


def embeddings_in(folder: pathlib.Path) -> list[dict[str, Any]]:
    """{file, step, network, split} of the embeddings in a folder; files that cannot be read are left out."""
    found = []
    for path in sorted(folder.glob("features-*.npz")):
        with contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile), np.load(path) as file:
            origin = json.loads(str(file["origin"]))
            found.append({"file": str(path)} | {name: origin[name] for name in ("step", "network", "split")})
    return found


def read_curves(path: pathlib.Path) -> tuple[dict[str, Points], dict[str, int]]:
    """Reads metrics.jsonl: (points by metric, numbers of values that were not finite by metric)."""
    curves: dict[str, Points] = {}
    not_finite: dict[str, int] = {}
    for row in rows_of(path):
        for metric, value in row.items():
            if metric == "step":
                continue
            if value is None or not math.isfinite(value):
                not_finite[metric] = not_finite.get(metric, 0) + 1
            else:
                curves.setdefault(metric, []).append((row["step"], value))
    return curves, not_finite


def rows_of(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of metrics.jsonl; one that a kill truncated is left out."""
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def names_of(workdirs: Sequence[str]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart: ["a/run", "b/run"], or ["one", "two"].

    Raises:
        UserError: A folder is given twice.
    """
    parts = [pathlib.Path(workdir).resolve().parts for workdir in workdirs]
    for i, own in enumerate(parts):
        if own in parts[:i]:
            raise UserError(f"{workdirs[i]} is given twice: leave one out")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return list(workdirs)


def differing(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Field -> its value in each run (None where a run has no such field), of the fields that differ.

    The method comes first, fields that not every run has come last.
    """
    fields = sorted({field for record in records for field in record.config})
    values = {field: [record.config.get(field) for record in records] for field in fields}
    rows = {field: row for field, row in values.items() if any(value != row[0] for value in row)}
    return dict(sorted(rows.items(), key=lambda item: (item[0] != "method.name", None in item[1])))


def groups(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Every field with its value in words, by the first part of its name; fields without a group under "run"."""
    grouped: dict[str, list[tuple[str, str]]] = {}
    for field, value in sorted(config.items()):
        group, dot, name = field.partition(".")
        grouped.setdefault(group if dot else "run", []).append((name if dot else field, words(value)))
    return dict(sorted(grouped.items(), key=lambda item: item[0] != "run"))


def words(value: Any) -> str:
    """A value of a config as a person writes it."""
    if value is None:
        return "absent"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(words, value))})"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) or "(empty)"
