"""Folders of small images, and the sources that read them."""

import io
import pathlib

import pytest
from PIL import Image

from helpers.views import data_config
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError


def encoded(number=0, kind="PNG", mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 0, 0)).convert(mode).save(file, kind)
    return file.getvalue()


def opened(root, **fields):
    return open_source(data_config(**{"source": "folder", "path": str(root)} | fields))


def refuse(match, root, **fields):
    with pytest.raises(UserError, match=match) as caught:
        opened(root, **fields)
    assert "\n" not in str(caught.value)


def names(source, split="train"):
    return [pathlib.Path(path).name for path in source.split(split).payloads]


def write(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number) if name.endswith((".png", ".tif")) else b"no image")
