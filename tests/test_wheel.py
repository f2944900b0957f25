"""The wheel, built without network: what it holds and says, and that it works in an empty folder."""

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers.tiny import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources: building leaves files beside them."""
    pytest.importorskip("setuptools")
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("maskcl_jax", "configs"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(sources)], check=True)
    (file,) = out.glob("*.whl")
    return file


def test_the_wheel_holds_the_package_and_its_configs(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "maskcl_jax").rglob("*.py")}
    package |= {str(path.relative_to(ROOT)) for path in (ROOT / "maskcl_jax/verify/reference").glob("*.npz")}
    package |= {str(path.relative_to(ROOT)) for path in (ROOT / "maskcl_jax/report/assets").iterdir()}
    package.add("maskcl_jax/py.typed")
    assert held == package | {f"maskcl_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}


def test_what_the_wheel_says_of_itself(wheel):
    files = {name.rpartition("/")[2]: name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    text = {name: zipfile.ZipFile(wheel).read(files[name]).decode() for name in ("METADATA", "LICENSE")}
    said = email.message_from_string(text["METADATA"])
    assert text["LICENSE"] == (ROOT / "LICENSE").read_text() and "Apache License" in text["LICENSE"]
    assert (said["License-Expression"] or said["License"]) == "Apache-2.0"  # setuptools from 77 on, and before
    assert sorted(said["Requires-Python"].split(",")) == ["<3.14", ">=3.11"]
    for version in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in said.get_all("Classifier")
    assert set(said.get_all("Provides-Extra")) >= {"cuda", "docs", "hf", "notebooks", "test", "torch", "tpu"}
    assert [line for line in said.get_all("Requires-Dist") if "hf" in line] == ['transformers>=4.57; extra == "hf"']
    assert said.get_payload().startswith("# maskcl_jax\n")
    placeholder = re.search(
        r"example\.(com|org)|REPOSITORY|TODO|://[^/\s]*/(user|owner|org|your\w*)\b", text["METADATA"]
    )
    assert not placeholder, placeholder


@pytest.mark.parametrize("config", ["configs/ccmim.py", "ccmim:imagenet", "mscn"])
def test_configs_are_found_from_an_empty_folder(wheel, config, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "maskcl_jax.main", f"--config={config}", "--print_config"],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=empty,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "method.name" in done.stdout
