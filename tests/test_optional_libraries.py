"""Libraries that are missing or broken: one line says which and why, and what needs none of them goes on."""

import io
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskcl_jax.data import decode
from maskcl_jax.data.sources import records
from maskcl_jax.errors import UserError, import_problem
from maskcl_jax.report import look, maps
from maskcl_jax.study import plots

BROKEN = "raise ValueError('numpy.dtype size changed')"


def test_a_library_is_tried_with_what_is_needed_of_it(tmp_path, monkeypatch):
    assert import_problem("json", "loads", "decoder.JSONDecoder") == ""
    assert import_problem("json", "nothing").startswith("json.nothing cannot be imported (AttributeError: module")
    assert import_problem("no_such_library") == "no_such_library is not installed"
    assert import_problem("json.no_part") == (
        "json.no_part cannot be imported (ModuleNotFoundError: No module named 'json.no_part')"
    )
    (tmp_path / "of_another_numpy.py").write_text(BROKEN + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = "of_another_numpy cannot be imported (ValueError: numpy.dtype size changed)"
    assert import_problem("of_another_numpy") == reason


FASTER = ("simplejpeg", "cykooz_resizer")
WITHOUT = f"""
import io, sys
sys.path.insert(0, sys.argv[1])
sys.modules.update(dict.fromkeys(sys.argv[2:]))
from PIL import Image
from maskcl_jax.data import decode
file = io.BytesIO()
Image.new("RGB", (40, 50)).save(file, "JPEG")
pixels = decode.decode(file.getvalue(), 3)
print(decode.resize(pixels, (20, 30), "bicubic").shape, decode.simplejpeg, decode.cykooz_resizer)
print(*(decode.PROBLEMS[name] for name in {FASTER!r}), sep="\\n")
"""


@pytest.mark.parametrize("content", [BROKEN, "", None])
def test_where_the_faster_libraries_are_broken_or_missing_pillow_does_their_work(content, tmp_path):
    """`content` is what lies in their place: it fails, it has nothing in it, it is not there."""
    for name in FASTER if content is not None else ():
        (tmp_path / f"{name}.py").write_text(content)
    hidden = FASTER if content is None else ()
    command = [sys.executable, "-c", WITHOUT, str(tmp_path), *hidden]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    worked, *problems = result.stdout.splitlines()
    assert worked == "(20, 30, 3) None None", result
    error = {BROKEN: "ValueError: numpy.dtype size changed", "": "AttributeError"}.get(content)
    reason = rf"[.\w]* cannot be imported \({error}.*\)" if error else " is not installed"
    for name, problem in zip(FASTER, problems, strict=True):
        assert re.fullmatch(f"{name}{reason}", problem)


def test_one_faster_library_may_be_missing_beside_the_other(tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(tmp_path), "simplejpeg"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    worked, *problems = result.stdout.splitlines()
    assert worked.startswith("(20, 30, 3) None <module")
    assert problems == ["simplejpeg is not installed", ""] or problems == ["simplejpeg is not installed"]


def test_an_array_record_file_needs_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    with pytest.raises(
        UserError, match=r"a.array_record needs array_record, and array_record\.python.* cannot be impor"
    ):
        records.array_records(str(tmp_path / "a.array_record"))


def test_a_report_says_why_there_is_no_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.ModuleType("umap"))  # the package umap is not umap-learn
    assert maps.umap_problem().startswith("umap.UMAP cannot be imported (AttributeError")
    (said,) = look.limits(quick=False)
    assert said.startswith("UMAP, as umap.UMAP cannot be imported") and said.endswith(": the map is PCA")
    whole = types.ModuleType("umap")
    whole.UMAP = object
    monkeypatch.setitem(sys.modules, "umap", whole)
    assert look.limits(quick=False) == []
    assert look.limits(quick=True)[1:] == ["UMAP"]


def test_a_study_says_why_nothing_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plots.draw({}, tmp_path) == []
    said = capsys.readouterr().out
    assert said.startswith("no plots are drawn, as matplotlib is not installed")
    assert said.endswith("pip install 'maskcl_jax[plots]'\n")


def test_an_image_that_needs_tifffile_says_so(monkeypatch):
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((8, 9, 3), np.float32), photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match="this TIFF needs tifffile, and tifffile is not installed"):
        decode.decode(file.getvalue(), 3)
    plain = io.BytesIO()
    Image.new("RGB", (9, 8)).save(plain, "TIFF")
    assert decode.decode(plain.getvalue(), 3).shape == (8, 9, 3)
