"""Plots of results.json as SVG, where matplotlib is installed (`pip install 'maskcl_jax[plots]'`).

    python -m maskcl_jax.study.plots docs/plots

draws those of all studies of results/ for the documentation.
"""

import hashlib
import pathlib
from typing import Any

from maskcl_jax import cli
from maskcl_jax.errors import UserError, import_problem
from maskcl_jax.study import tables
from maskcl_jax.study.results import dumps, read

COLOR, BASELINE = "#1f6fb2", "#888888"


def digest(content: dict[str, Any]) -> str:
    """What a plot holds of the results from which it was drawn; changes with every figure."""
    return hashlib.blake2b(dumps(content).encode(), digest_size=8).hexdigest()


def undrawable() -> str:
    """Why nothing can be drawn, and what to do; "" where matplotlib can be used."""
    reason = import_problem("matplotlib", "use", "rcParams")
    return reason and f"no plots are drawn, as {reason}: pip install 'maskcl_jax[plots]'"


def draw(content: dict[str, Any], folder: pathlib.Path, prefix: str = "") -> list[pathlib.Path]:
    """Writes figures.svg, and convergence.svg where runs were evaluated on their way.

    Args:
        content: Of results.json.
        folder: Where to.
        prefix: Of the files' names.

    Returns:
        The files; none where matplotlib cannot be used; a line says why.
    """
    if problem := undrawable():
        print(problem, flush=True)
        return []
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "maskcl_jax", "svg.fonttype": "none", "font.size": 9})
    drawn = []
    for name, plot in (("figures", figures_plot), ("convergence", convergence_plot)):
        figure = plot(content)
        if figure is not None:
            drawn.append(folder / f"{prefix}{name}.svg")
            figure.savefig(drawn[-1], metadata={"Date": None, "Description": digest(content)})
            pyplot.close(figure)
    return drawn


def figures_plot(content: dict[str, Any]) -> Any:
    """A matplotlib figure: one panel a figure, entries down, a dot for each seed and a bar at the mean; or None."""
    from matplotlib import pyplot

    rows = content["figures"]
    names = [name for name in ("k-NN", "linear", "mIoU") if any(row["figure"] == name for row in rows)]
    entries = [entry["name"] for entry in content["entries"] if any(row["entry"] == entry["name"] for row in rows)]
    if not names:
        return None
    trained = {row["entry"] for row in content["runs"]}
    size = (1.8 + 2.6 * len(names), 0.6 + 0.26 * len(entries))
    figure, panels = pyplot.subplots(1, len(names), sharey=True, squeeze=False, figsize=size, layout="constrained")
    for panel, name in zip(panels[0], names, strict=True):
        for place, entry in enumerate(entries):
            values = [row["value"] for row in rows if (row["entry"], row["figure"]) == (entry, name)]
            color = COLOR if entry in trained else BASELINE
            if values:
                panel.plot(values, [place] * len(values), "o", color=color, markersize=4)
                panel.plot([sum(values) / len(values)], [place], "|", color=color, markersize=12)
            if values and entry not in trained:
                panel.axvline(max(values), color=BASELINE, linewidth=0.6, linestyle=":")
        panel.set_title(f"{name}, %", fontsize=9)
        panel.set_yticks(range(len(entries)), entries)
        panel.grid(axis="y", linewidth=0.3)
    panels[0][0].invert_yaxis()
    return figure


def convergence_plot(content: dict[str, Any]) -> Any:
    """A matplotlib figure: online k-NN and linear accuracy against images and CPU time of the steps; or None."""
    from matplotlib import pyplot

    runs = [run for run in content["runs"] if len(run["curve"]) > 2 and run.get("cpu_seconds_per_image")]
    if not runs:
        return None
    curves = {"knn_accuracy": "k-NN, %", "linear_accuracy": "linear, %"}
    names = [name for name in curves if all(name in point for run in runs for point in run["curve"])]
    size: dict[str, Any] = {"figsize": (7, 2.6 * len(names)), "sharex": "col", "sharey": "row", "squeeze": False}
    figure, panels = pyplot.subplots(len(names), 2, layout="constrained", **size)
    entries = list(dict.fromkeys(run["entry"] for run in runs))
    for run in runs:
        images = [point["step"] * run["images"] / run["steps"] for point in run["curve"]]
        seconds = [count * run["cpu_seconds_per_image"] for count in images]
        first = run is next(other for other in runs if other["entry"] == run["entry"])
        style = {"color": f"C{entries.index(run['entry'])}", "linewidth": 1.2}
        label = run["entry"] if first else None
        for row, name in zip(panels, names, strict=True):
            values = [point[name] for point in run["curve"]]
            row[0].plot(images, values, label=label, **style)
            row[1].plot(seconds, values, **style)
            row[0].set_ylabel(curves[name])
    panels[-1][0].set_xlabel("images")
    panels[-1][1].set_xlabel("CPU seconds of the steps")
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


def main(argv: list[str]) -> None:
    """Draws the plots of all studies of --results."""
    folder = pathlib.Path(argv[1])
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: make it, or give docs/plots")
    if problem := undrawable():
        raise UserError(problem)
    for path in sorted(pathlib.Path(tables.RESULTS.value).glob("*.json")):
        draw(read(path), folder, f"{path.stem}-")


if __name__ == "__main__":
    cli.run(main, positional="DIR")
