"""The notebooks of docs/notebooks run from top to bottom, and hold no output; SimMIM's is examples/simmim.py."""

import importlib.util
import json
import os
import re

import pytest
from helpers.tiny import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NEEDS = {"export": ("torch", "timm")}
# What a kernel needs of conftest.py: a timm that imports beside any build of torchvision.
SETUP = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import conftest"


def cells_of(path):
    """The code cells of a notebook, as text."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def kernel():
    """A kernel for one notebook after the other: each of its own would import the libraries, and trace MAE, again.

    What one notebook imports, the next one finds imported; its own imports are checked by running it alone.
    """
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for package in ("ipykernel", "matplotlib"):
        pytest.importorskip(package, reason=f"the notebooks need {package}")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
    with client.setup_kernel(env=os.environ | {"MASKCL_JAX_FEW": "1", "PYTHONPATH": path}):
        yield client.km


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, kernel, tmp_path):
    """A short run of everything, in a folder of its own; the full length is that of `jupyter execute`."""
    import nbclient
    import nbformat

    for package in NEEDS.get(path.stem, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the notebook needs {package}")
    book = nbformat.read(path, as_version=4)
    setup = ["%reset -f", f"%cd -q {tmp_path}", *([SETUP] if path.stem in NEEDS else [])]
    book.cells.insert(0, nbformat.v4.new_code_cell("\n".join(setup)))
    nbclient.NotebookClient(book, timeout=300, km=kernel).execute()
    failed = [output for cell in book.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert not failed
    shown = [str(output) for cell in book.cells for output in cell.get("outputs", [])]
    if path.stem == "own_folder":  # a command that fails does not stop a notebook
        assert "</html>" in (tmp_path / "report.html").read_text()
        assert any("<a href='report.html'" in output for output in shown)
    if path.stem == "export":
        compared = ["timm", *(["transformers"] if importlib.util.find_spec("transformers") else [])]
        assert sum("largest difference: " in output for output in shown) == len(compared)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_kept_and_the_first_cell_installs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    assert "%pip install" in "".join(cells[0]["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_what_lies_beside_it_and_never_asks_an_index(path, tmp_path, monkeypatch):
    """On Colab, where the package is not installed: an uploaded wheel, else a clone, else one line."""
    code, count = re.subn(r'%pip install -q "\$(\w+)" matplotlib', r"installed.append(\1)", cells_of(path)[0])
    assert count == 1
    monkeypatch.chdir(tmp_path)
    installed, extras = [], "[torch,hf]" if path.stem == "export" else ""
    exec(code, {"installed": installed})  # the package can be imported here
    assert installed == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^maskcl_jax is not installed: upload maskcl_jax-.*\.whl into this folder$"):
        exec(code, {"installed": installed})
    (tmp_path / "a clone" / "maskcl_jax").mkdir(parents=True)
    (tmp_path / "a clone" / "maskcl_jax" / "main.py").touch()
    exec(code, {"installed": installed})
    for version in ("0.1.0", "0.2.0"):
        (tmp_path / f"maskcl_jax-{version}-py3-none-any.whl").touch()
    exec(code, {"installed": installed})
    found = ("a clone", "maskcl_jax-0.2.0-py3-none-any.whl")
    assert installed == [f"{tmp_path.resolve() / name}{extras}" for name in found]


def test_the_notebook_writes_the_example():
    written = [cell for cell in cells_of(ROOT / "docs" / "notebooks" / "own_method.ipynb") if "%%writefile" in cell]
    assert [cell.partition("\n")[0] for cell in written] == [
        "%%writefile examples/simmim.py",
        *["%%writefile -a examples/simmim.py"] * 3,
    ]
    text = "".join(cell.partition("\n")[2] + "\n" for cell in written)
    assert text == (ROOT / "examples" / "simmim.py").read_text()
