"""Exports of a run, and the libraries that load them."""

import pathlib

import pytest

from maskcl_jax.interchange.exporting import export_run


def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")


def library(name):
    """Skips where a loader is not installed."""
    torch()
    module = {"hf": "transformers", "torchvision": "torchvision"}.get(name, "timm")
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[torch]'")


def exports(run, formats, tmp_path, **options) -> list[pathlib.Path]:
    """The run in each of the formats, checked."""
    folders = [tmp_path / f"to_{format}" for format in formats]
    for format, folder in zip(formats, folders, strict=True):
        said = export_run(run, format, str(folder), check=True, **options).readme
        assert "largest difference" in said
        assert said == (folder / "README.md").read_text()
    return folders
