"""Markdown tables of results.json, and the pages of the docs that quote them.

    python -m maskcl_jax.study.tables docs/results.md docs/methods/*.md

updates the tables of pages: what stands between `<!-- table: STUDY-SCALE WHAT -->` and `<!-- end -->` is made from
results/STUDY-SCALE.json. WHAT is `facts`, `figures`, `comparisons`, `convergence`, `rows ENTRY; ENTRY` (some rows of
the figures), `across ENTRY; ENTRY` (k-NN and linear figures of some entries, one line each), `providers` (of what
`study.providers` wrote) or `peers` (of what `benchmarks/peers/compare.py` wrote).
"""

import json
import pathlib
import re
from typing import Any

import numpy as np
from absl import flags

from maskcl_jax import cli
from maskcl_jax.errors import UserError
from maskcl_jax.study.results import read

RESULTS = flags.DEFINE_string("results", "results", "The folder of the results that pages quote.")
BLOCK = re.compile(r"(<!-- table: (\S+) (\w+)(?: ([^\n]+))? -->\n).*?(<!-- end -->)", re.DOTALL)
COST = {"cpu_seconds": "CPU minutes", "images": "images"}


def figures_table(content: dict[str, Any]) -> str:
    """Entries down, figures across: mean and std over seeds, in percent; and the cost of the training."""
    rows = content["summary"]
    names = [name for name in dict.fromkeys(row["figure"] for row in rows) if name not in COST]
    cells = {(row["entry"], row["figure"]): row for row in rows}
    body = []
    for entry in content["entries"]:
        name = entry["name"]
        if not any((name, figure) in cells for figure in names):
            continue
        cost = [cost_cell(cells.get((name, figure)), figure) for figure in COST]
        seeds = max(len(cells[name, figure]["seeds"]) for figure in names if (name, figure) in cells)
        body.append([name, *(cell(cells.get((name, figure))) for figure in names), str(seeds), *cost])
    return markdown(["", *names, "seeds", *COST.values()], body)


def entries_of(content: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """Entries of a study by their names. Raises UserError where it has no such entry."""
    entries = {entry["name"]: entry for entry in content["entries"]}
    if unknown := [name for name in names if name not in entries]:
        raise UserError(f"table of {unknown[0]!r}: use entries of the study, {'; '.join(entries)}")
    return [entries[name] for name in names]


def across_table(content: dict[str, Any], names: list[str]) -> str:
    """Entries across, k-NN and linear down: the means over seeds in percent."""
    cells = {(row["entry"], row["figure"]): row for row in content["summary"]}
    shown = [entry["name"] for entry in entries_of(content, names)]
    body = [[figure, *(cell(cells.get((name, figure))) for name in shown)] for figure in ("k-NN", "linear")]
    return markdown(["%", *shown], body)


def rows_table(content: dict[str, Any], names: list[str]) -> str:
    """The rows of `figures_table` of some entries, in their order here; a sentence until the first of them is measured.

    Raises:
        UserError: The study has no such entry.
    """
    entries = entries_of(content, names)
    if not any(row["entry"] == names[0] and row["figure"] not in COST for row in content["summary"]):
        return f"{names[0]} has not been measured there yet."
    return figures_table(content | {"entries": entries})


def cell(row: dict[str, Any] | None) -> str:
    """`41.2 ± 0.3`, or `41.2` of one seed; a figure of fewer seeds than another of its entry is not marked."""
    if row is None:
        return ""
    return f"{row['mean']:.1f}" + (f" ± {row['std']:.1f}" if row["std"] is not None else "")


def cost_cell(row: dict[str, Any] | None, figure: str) -> str:
    """What a training cost."""
    if row is None:
        return ""
    return f"{row['mean'] / 60:.1f}" if figure == "cpu_seconds" else f"{row['mean']:,.0f}"


def comparisons_table(content: dict[str, Any]) -> str:
    """Pairs down, figures across as in `figures_table`: the difference in percent points, with its 95 % interval.

    The interval is over test images; of several seeds that over seeds follows after a semicolon.
    """
    rows = content["comparisons"]
    compared = {row["figure"] for row in rows}
    names = [name for name in dict.fromkeys(row["figure"] for row in content["summary"]) if name in compared]
    body = []
    for pair in dict.fromkeys((row["entry"], row["other"]) for row in rows):
        cells = {row["figure"]: row for row in rows if (row["entry"], row["other"]) == pair}
        seeds = max(len(row["seeds"]) for row in cells.values())
        body.append([" - ".join(pair), *(difference(cells.get(name)) for name in names), str(seeds)])
    return markdown(["points", *names, "seeds"], body)


def difference(row: dict[str, Any] | None) -> str:
    """`+0.9 (-0.5 to +2.3; -1.0 to +2.8)`: over test images; over seeds."""
    if row is None:
        return ""
    intervals = ["{:+.1f} to {:+.1f}".format(*row[name]) for name in ("over_images", "over_seeds") if row[name]]
    return f"{row['difference']:+.1f}" + (f" ({'; '.join(intervals)})" if intervals else "")


def facts_table(content: dict[str, Any]) -> str:
    """Question, budget, and where and when the figures were measured."""
    rows = content["figures"] + content["runs"]
    dates, commits = ({row[name] for row in rows} for name in ("date", "commit"))
    dates_text = " to ".join(dict.fromkeys((min(dates), max(dates)))) if rows else "nothing measured yet"
    lines = [f"* Question: {content['question']}", f"* Budget, fixed before the runs: {content['budget']}"]
    lines += [f"* Measured: {dates_text}, commits {', '.join(sorted(commits))}."]
    lines += [f"* {entry['name']}: {entry['note']}" for entry in content["entries"] if entry["note"]]
    return "\n".join(lines)


def markdown(head: list[str], body: list[list[str]]) -> str:
    """A table whose columns are aligned."""
    if not body:
        return "Nothing measured yet."
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(f"{text:<{w}}" for text, w in zip(line, widths, strict=True)) + " |" for line in [head, *body]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def convergence_table(content: dict[str, Any]) -> str:
    """Entries down; k-NN and linear accuracy online after equal numbers of images, and after equal CPU time.

    The CPU time is that of the entry whose training took the least, of its steps only; between two evaluations figures
    are interpolated.
    """
    runs = [run for run in content["runs"] if len(run["curve"]) > 2 and run.get("cpu_seconds_per_image")]
    if not runs:
        return "Nothing measured yet."
    images = min(run["images"] for run in runs)
    time = min(run["images"] * run["cpu_seconds_per_image"] for run in runs)
    points = [images // 8, images // 4, images // 2, images]
    head = ["", "figure", *(f"{n:,} images" for n in points), f"{time:.0f} CPU s", "CPU ms an image", "seeds"]
    body = []
    for entry in dict.fromkeys(run["entry"] for run in runs):
        own = [run for run in runs if run["entry"] == entry]
        cost = sum(run["cpu_seconds_per_image"] for run in own) / len(own)
        for name, figure in (("knn_accuracy", "k-NN"), ("linear_accuracy", "linear")):
            if all(name in point for run in own for point in run["curve"]):
                at = [*points, time / cost]
                values = [sum(accuracy_at(run, name, n) for run in own) / len(own) for n in at]
                cells = [f"{value:.1f}" for value in values]
                body.append([entry, figure, *cells, f"{1000 * cost:.2f}", str(len(own))])
    return markdown(head, body)


def accuracy_at(run: dict[str, Any], name: str, images: float) -> float:
    """A run's online figure after so many images, interpolated between two evaluations."""
    per_step = run["images"] / run["steps"]
    seen, values = zip(*((point["step"] * per_step, point[name]) for point in run["curve"]), strict=True)
    return float(np.interp(images, seen, values))


def providers_table(content: dict[str, Any]) -> str:
    """Saliency providers down: percent, with half of a 95 % interval over images."""
    body = []
    for row in content["providers"]:
        found = [f"{100 * row[name]:.1f} ± {100 * row[f'{name}_half']:.1f}" for name in ("iou", "precision", "gain")]
        body.append([f"`{row['provider']}`", *found])
    return markdown(["provider", "IoU", "cover of the top cells", "above chance"], body)


def peers_table(content: dict[str, Any]) -> str:
    """Methods and libraries down: images seen in equal CPU time, images per CPU second of the steps, k-NN."""
    minutes = content["facts"]["cpu_minutes"]
    head = ["method", "library", f"images in {minutes:g} CPU minutes", "per CPU second", "k-NN, %"]
    formats = {"method": "", "library": "", "images": ",", "images_per_cpu_second": ".0f", "knn": ".1f"}
    return markdown(head, [[format(row[name], how) for name, how in formats.items()] for row in content["rows"]])


OTHERS = {"providers": providers_table, "peers": peers_table}  # of files that are no study's
CHOSEN = {"rows": rows_table, "across": across_table}  # of entries that the page names
TABLES = {
    "convergence": convergence_table,
    "figures": figures_table,
    "comparisons": comparisons_table,
    "facts": facts_table,
}


def filled(page: str, folder: pathlib.Path) -> str:
    """A page with its tables updated. Raises UserError for a table that cannot be made."""

    def table(found: re.Match) -> str:
        start, name, what, names, end = found.groups()
        path = folder / f"{name}.json"
        if not path.is_file():
            raise UserError(f"table {name} {what}: {path} is not a file: run the study, or remove the table")
        if what in CHOSEN and names:
            text = CHOSEN[what](read(path), names.split("; "))
        elif what in OTHERS and not names:
            text = OTHERS[what](json.loads(path.read_text()))
        elif what in TABLES and not names:
            text = TABLES[what](read(path))
        else:
            kinds = ", ".join([*TABLES, *OTHERS, *(f"{kind} ENTRY; ENTRY" for kind in CHOSEN)])
            raise UserError(f"table {name} {what}: use one of {kinds}")
        return f"{start}\n{text}\n\n{end}"

    return BLOCK.sub(table, page)


def main(argv: list[str]) -> None:
    """Writes the tables of pages; none, if one of them cannot be made."""
    paths = [pathlib.Path(name) for name in argv[1:]]
    for path in paths:
        if not path.is_file():
            raise UserError(f"page {path} is not a file: give one of docs/")
    pages = [filled(path.read_text(), pathlib.Path(RESULTS.value)) for path in paths]
    for path, page in zip(paths, pages, strict=True):
        path.write_text(page)


if __name__ == "__main__":
    cli.run(main, positional="PAGE.md", several=True)
