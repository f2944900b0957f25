"""Puts a page together: reads the runs, looks at their encoders, fills the template."""

import datetime
import pathlib
import re
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import jax
import jinja2
import numpy as np

from maskcl_jax import __version__
from maskcl_jax.config import is_vit
from maskcl_jax.data.sources.layout import role_of
from maskcl_jax.errors import UserError, first_line
from maskcl_jax.evaluate import results
from maskcl_jax.interchange.facts import resnet_name
from maskcl_jax.report import charts, commands, film, findings, pixels, record
from maskcl_jax.report import look as look_lib
from maskcl_jax.report.look import Look
from maskcl_jax.report.record import Record
from maskcl_jax.training import run_folder

QUICK_BYTES = 2**29  # a larger checkpoint takes more than a few seconds to read
THUMBNAIL = 40  # pixels of an image in the sheet that the map's hover shows
IMAGES, IMAGES_OF_SEVERAL = 8, 4  # columns of the frames, for one run and for several beside each other
KEY_FIELDS = (
    "method.name",
    "preset",
    "batch_size",
    "epochs",
    "total_steps",
    "optimizer.name",
    "optimizer.base_lr",
    "data.image_size",
    "dtype",
    "seed",
)


class Report(NamedTuple):
    """A page that was written.

    Attributes:
        path: Of the file.
        seconds: That it took.
        left_out: What is not on it, and why.
    """

    path: pathlib.Path
    seconds: float
    left_out: list[str]

    def __str__(self) -> str:
        """One line for the screen."""
        left_out = f"; left out: {'; '.join(self.left_out)}" if self.left_out else ""
        return f"report: {self.path} ({self.path.stat().st_size / 1e6:.1f} MB, {self.seconds:.1f} s){left_out}"


def write(workdirs: Sequence[str], out: str | pathlib.Path, *, quick: bool = False) -> Report:
    """Writes one page about some runs.

    Args:
        workdirs: The runs' folders.
        out: The file; it may exist. Folders above it are made.
        quick: As much as goes in a few seconds a run.

    Returns:
        Where the page is, and what is not on it.

    Raises:
        UserError: A folder is no run, holds nothing yet or is given twice, or the file cannot be written.
    """
    start = time.monotonic()
    names = record.names_of(workdirs)
    records = [record.read(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]
    looks, problems = zip(*(looked(run, quick=quick) for run in records), strict=True)
    left_out = joined(records, problems)
    text = render(context(records, looks, left_out, quick=quick, out=str(out)))
    path = pathlib.Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written ({error.strerror}): give another") from None
    return Report(path, time.monotonic() - start, left_out)


def joined(records: Sequence[Record], texts_of: Sequence[list[str]]) -> list[str]:
    """What is said of any run, each text with the names of the runs, unless it is said of all."""
    runs: dict[str, list[str]] = {}
    for run, texts in zip(records, texts_of, strict=True):
        for text in texts:
            runs.setdefault(text, []).append(run.name)
    return [text if len(names) == len(records) else f"{', '.join(names)}: {text}" for text, names in runs.items()]


def after_training(config: Any, workdir: str) -> str:
    """Writes RUN/report.html quickly, where `log.report` wants it; never fails.

    A page that is newer than the run's closing table stays as it is: nothing was trained since, and it may be whole.

    Args:
        config: The run's.
        workdir: The run's folder.

    Returns:
        A line for the screen; "" where nothing was to be done, on all processes but the first too.
    """
    if not config.log.report or jax.process_index() != 0:
        return ""
    try:
        page, summary = (pathlib.Path(workdir) / name for name in ("report.html", run_folder.SUMMARY))
        if page.exists() and summary.exists() and page.stat().st_mtime_ns >= summary.stat().st_mtime_ns:
            return f"report: {page} (left as it was: nothing was trained since)"
        return str(write([workdir], page, quick=True))
    except Exception as error:  # the run is done: nothing that goes wrong here may end it with an error
        return f"report: not written ({type(error).__name__}: {first_line(error)})"


def looked(run: Record, *, quick: bool) -> tuple[Look | None, list[str]]:
    """(the look at a run's encoder, what is left out)."""
    if quick and (size := checkpoint_bytes(run)) > QUICK_BYTES:
        return None, [f"everything that needs the encoder, whose checkpoint has {size / 2**30:.1f} GiB"]
    try:
        look = look_lib.look(run.workdir, quick=quick)
    except UserError as error:
        return None, [f"everything that needs the encoder and the data: {first_line(error)}"]
    return look, look.left_out


def checkpoint_bytes(run: Record) -> int:
    """The size of a run's newest checkpoint."""
    folder = pathlib.Path(run.workdir) / "checkpoints" / str(max(run.checkpoints, default=0))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def render(values: dict[str, Any]) -> str:
    """Fills the template."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("maskcl_jax.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(values | {"asset": asset, "words": record.words})


def asset(name: str) -> str:
    """The text of a file of `assets/`."""
    return resources.files("maskcl_jax.report").joinpath("assets", name).read_text(encoding="utf-8")


def context(
    records: Sequence[Record], looks: Sequence[Look | None], left_out: list[str], *, quick: bool, out: str
) -> dict[str, Any]:
    """Everything that the template shows."""
    first, others = charts.charts(records)
    several = len(records) > 1
    checks = [findings.checks(run, look) for run, look in zip(records, looks, strict=True)]
    runs = [
        run_context(i, run, look, several=several) for i, (run, look) in enumerate(zip(records, looks, strict=True))
    ]
    return {
        "title": "Comparison of " + ", ".join(run.name for run in records) if several else records[0].name,
        "several": several,
        "runs": runs,
        "overview": list(dict.fromkeys(label for run in runs for label in run["tiles"])),
        "longest_film": max([1, *(len(run["film"]["frames"]) for run in runs if run["film"])]),
        "maps": list(dict.fromkeys(name for run in runs if run["map"] for name in run["map"]["maps"])),
        "differing": record.differing(records) if several else {},
        "charts": first,
        "other_charts": others,
        "embedded": joined(records, [[look.embedded] if look else [] for look in looks]),
        "left_out": left_out,
        "quick": quick,
        "again": commands.again(records, out),
        "checked": joined(records, [[what for what, problem in made.items() if not problem] for made in checks]),
        "not_checked": joined(
            records, [[f"{what} ({problem})" for what, problem in made.items() if problem] for made in checks]
        ),
        "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "version": __version__,
        "data": {"charts": first + others, "maps": [run["map"] for run in runs]},
    }


def run_context(i: int, run: Record, look: Look | None, *, several: bool) -> dict[str, Any]:
    """What the template shows of one run; i: its number, which is its color."""
    return {
        "number": i,
        "name": run.name,
        "workdir": run.workdir,
        "headline": headline(run, look),
        "tiles": tiles(run, look),
        "key_fields": [(field, record.words(run.config[field])) for field in KEY_FIELDS if run.config.get(field)],
        "config": record.groups(run.config),
        "findings": findings.findings(run, look),
        "film": film.film(run, images=IMAGES_OF_SEVERAL if several else IMAGES),
        "map": map_of(look),
        "neighbors": neighbors_of(look, initial=not several),
        "attention": {
            title: [pixels.thumbnail(image) for image in images[: IMAGES_OF_SEVERAL if several else IMAGES]]
            for title, images in (look.attention.items() if look else ())
        },
        "look": look is not None,
        "held_out": look is not None and look.split == "test",
        "accuracy": [
            (who, look_lib.interval(entry), bar(entry)) for who, entry in (look.accuracy.items() if look else ())
        ],
        "evaluations": evaluations(run),
        "embeddings": run.embeddings,
        "commands": commands.commands(run, look),
        "summary": run.summary,
    }


def headline(run: Record, look: Look | None) -> str:
    """A run in one line: method, data, network, images."""
    model = {field.removeprefix("model."): value for field, value in run.config.items() if field.startswith("model.")}
    if is_vit(model):
        network = f"ViT of width {model['width']}, {model['depth']} blocks, patches of {model['patch_size']} pixels"
    else:
        network = f"{resnet_name(model['depth'], model['stages'])}, width {model['width']}"
    if look:
        network += f", {look.parameters / 1e6:.3g} M parameters"
    height, width = run.config["data.image_size"]
    return f"{run.method} on {data_name(run)} · {network} · {height}x{width} pixels"


def data_name(run: Record) -> str:
    """What a run was trained on: the user's list, folder or file, else the preset or the kind of source."""
    given = pathlib.Path(run.config.get("data.list") or run.config.get("data.path") or "")
    if given.parent == pathlib.Path(run.workdir).absolute():  # arrays in memory are kept there
        given = pathlib.Path()
    named = (name for name in reversed(given.parts) if not (role_of(name) or re.search(r"[*?[/]|^\.\.$", name)))
    return next(named, "") or run.config["preset"] or run.config["data.source"]


def tiles(run: Record, look: Look | None) -> dict[str, tuple[str, str]]:
    """Label -> (value, note) of what a person looks for first."""
    found = {}
    knn, loss = run.curves.get("knn_accuracy", []), run.curves.get("loss", [])
    if knn:
        note = f"{knn[0][1]:.1f} % untrained" if knn[0][0] == 0 and len(knn) > 1 else f"at step {knn[-1][0]}"
        found["k-NN accuracy"] = f"{knn[-1][1]:.1f} %", note
    if loss:
        found["Loss"] = f"{loss[-1][1]:.4g}", f"from {loss[0][1]:.4g}"
    if speed := run.curves.get("images_per_second"):
        values = sorted(value for _, value in speed)
        wait = run.summary.get("data wait", "").split(" ")[0]
        note = f"{wait} waiting for data" if wait else "median"
        found["Throughput"] = f"{values[len(values) // 2]:,.0f}", f"images/s, {note}"
    of = f"of {look.total:,}, " if look else ""
    found["Steps"] = f"{run.step:,}", f"{of}{run.config['batch_size']} images each"
    if look:
        first = f"{look.initial.rank:.1f} untrained, " if look.initial else ""
        found["Effective rank"] = f"{look.rank:.1f}", f"{first}of {look.held_out.features.shape[1]} dimensions"
    return found


def evaluations(run: Record) -> list[dict[str, Any]]:
    """The rows of all evaluations, each with the bar of its accuracy where it has one."""
    found = []
    for content in run.evaluations:
        for row, entry in zip(results.rows(content), content["values"]["entries"], strict=True):
            found.append(row | {"bar": bar(entry), "date": content["date"][:10], "command": content["command"]})
    return found


def bar(entry: dict[str, Any]) -> dict[str, float] | None:
    """An accuracy and its interval in percent, for a drawing."""
    if "accuracy" not in entry:
        return None
    return {name: round(100 * entry[name], 2) for name in ("accuracy", "low", "high")}


def map_of(look: Look | None) -> dict[str, Any] | None:
    """The points of the maps with what hovering shows; None where there are none."""
    if look is None or not look.maps:
        return None
    images = np.concatenate(
        [pixels.shrink(look.held_out.shown(i)[None], THUMBNAIL) for i in range(len(look.held_out.labels))]
    )
    sheet = pixels.sprite(images)
    return {
        "maps": {name: points.round(4).tolist() for name, points in look.maps.items()},
        "axes": [
            f"{name}, {100 * part:.0f} % of the variance"
            for name, part in zip(("PC 1", "PC 2"), look.explained, strict=True)
        ],
        "labels": look.held_out.labels.tolist(),
        "names": look.names,
        "classes": list(look.class_names),
        "sheet": pixels.data_uri(sheet, lossless=False),
        "columns": sheet.shape[1] // images.shape[2],
        "rows": sheet.shape[0] // images.shape[1],
    }


def neighbors_of(look: Look | None, *, initial: bool) -> list[dict[str, Any]]:
    """Each query with its nearest images; initial: with those of the untrained encoder, too, where they are known."""
    if look is None:
        return []

    def name(label: int) -> str:
        return look.class_names[label] if look.class_names and label >= 0 else ""

    def found(label: int, nearest: np.ndarray, cosines: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "src": pixels.thumbnail(look.pool.shown(i)),
                "label": name(int(look.pool.labels[i])),
                "cosine": f"{cosine:.3f}",
                "same": None if label < 0 else bool(look.pool.labels[i] == label),
            }
            for i, cosine in zip(nearest, cosines, strict=True)
        ]

    first, rows = look.initial if initial else None, []
    for i, query in enumerate(look.queries):
        label = int(look.held_out.labels[query])
        rows.append(
            {
                "src": pixels.thumbnail(look.held_out.shown(query)),
                "label": name(label),
                "nearest": found(label, look.nearest[i], look.similarity[i]),
                "initial": found(label, first.nearest[i], first.similarity[i]) if first else [],
            }
        )
    return rows
