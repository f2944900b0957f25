"""The tables that pages of the documentation quote from results/."""

import json
import re
import subprocess
import sys

import pytest
from helpers.processes import environment
from helpers.tiny import ROOT

from maskcl_jax.errors import UserError
from maskcl_jax.study import plots, tables
from maskcl_jax.study.results import read

RESULTS = sorted((ROOT / "results").glob("*.json"))
METHOD_PAGES = sorted((ROOT / "docs/methods").glob("*.md"))


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "docs/results.md", *METHOD_PAGES], ids=lambda path: path.name
)
def test_the_tables_of_the_docs_are_made_of_the_results(path):
    page = path.read_text()
    assert "<!-- table: cifar10-cpu " in page
    assert tables.filled(page, ROOT / "results") == page, "run python -m maskcl_jax.study.tables on the page"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_plots_of_the_docs_are_drawn_from_the_results(path):
    drawn = sorted((ROOT / "docs/plots").glob(f"{path.stem}-*.svg"))
    assert drawn
    for plot in drawn:
        assert plots.digest(read(path)) in plot.read_text(), "run python -m maskcl_jax.study.plots docs/plots"


def test_plots_of_all_results_are_drawn_by_a_command(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[plots]'")
    command, options = [sys.executable, "-m", "maskcl_jax.study.plots"], {"env": environment(1), "cwd": ROOT}
    subprocess.run([*command, str(tmp_path)], check=True, **options)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs/plots").iterdir()}
    done = subprocess.run([*command, "nowhere"], capture_output=True, text=True, check=False, **options)
    assert done.stderr.splitlines()[-1] == "error: nowhere is not a folder: make it, or give docs/plots"


def test_a_page_has_the_table_of_the_peers(tmp_path):
    row = {"method": "mae", "library": "lightly", "images": 45440, "images_per_cpu_second": 254.3, "knn": 33.44}
    (tmp_path / "peers.json").write_text(json.dumps({"facts": {"cpu_minutes": 3.0}, "rows": [row]}))
    page = tables.filled("<!-- table: peers peers -->\n<!-- end -->\n", tmp_path)
    assert "images in 3 CPU minutes" in page
    cells = [cell.strip() for cell in page.splitlines()[4].split("|")[1:-1]]
    assert cells == ["mae", "lightly", "45,440", "254", "33.4"]
    with pytest.raises(UserError, match=r"table peers rows: use one of convergence, .*, peers, rows ENTRY; ENTRY"):
        tables.filled("<!-- table: peers rows -->\n<!-- end -->\n", tmp_path)
    with pytest.raises(UserError, match=r"table other figures: .*other.json is not a file"):
        tables.filled("<!-- table: other figures -->\n<!-- end -->\n", tmp_path)


@pytest.mark.parametrize("path", METHOD_PAGES, ids=lambda path: path.name)
def test_the_older_figures_of_a_method_are_those_of_the_page_of_results(path):
    kept = (ROOT / "docs/results.md").read_text()
    quoted = re.findall(r"\d\d\.\d / \d\d\.\d", path.read_text())
    assert quoted and all(figures in kept for figures in quoted)


def test_a_page_has_some_rows_of_a_table(tmp_path):
    row = {"figure": "k-NN", "seeds": [0], "mean": 41.25, "std": None}
    summary = [row | {"entry": "b"}, row | {"entry": "a", "mean": 50.0}]
    content = {"entries": [{"name": name, "note": ""} for name in ("a", "b, c", "b")], "summary": summary}
    lines = tables.rows_table(content, ["b", "b, c", "a"]).splitlines()[2:]
    assert [line.split("|")[1:3] for line in lines] == [[" b ", " 41.2 "], [" a ", " 50.0 "]]
    assert tables.rows_table(content, ["b, c", "a"]) == "b, c has not been measured there yet."
    with pytest.raises(UserError, match="'d': use entries of the study, a; b, c; b"):
        tables.rows_table(content, ["b", "d"])
    across = tables.across_table(content, ["b", "a"]).splitlines()
    assert [line.split("|")[2:4] for line in across[2:]] == [[" 41.2 ", " 50.0 "], ["      ", "      "]]
    pages = [tmp_path / name for name in ("one.md", "two.md")]
    (tmp_path / "study-cpu.json").write_text(json.dumps(content | {"runs": [], "figures": [], "comparisons": []}))
    for page in pages:
        page.write_text("<!-- table: study-cpu rows b; a -->\n<!-- end -->\n")
    command = [sys.executable, "-m", "maskcl_jax.study.tables", *map(str, pages), f"--results={tmp_path}"]
    subprocess.run(command, check=True, env=environment(1))
    assert all("41.2" in page.read_text() for page in pages)
