"""Tar files of images, as WebDataset writes them: `NAME.jpg` beside `NAME.cls`, which holds the number of the class.

Every image can be read on its own: where it lies is looked up in an index, which is made once and kept
(`sources.records`). A damaged member costs itself only: it counts as an image that cannot be read.

Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

import glob
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from maskcl_jax.data import decode
from maskcl_jax.data.sources import records
from maskcl_jax.data.sources.base import Encoded, Source
from maskcl_jax.data.sources.folder import EXTENSIONS
from maskcl_jax.errors import UserError

LABELS = ("cls", "cls.txt")


class TarSource(Source):
    """The images in the .tar files of `path`, and for testing of `test_path`: a folder, a file, or a pattern with *.

    The classes are the numbers from 0 to the largest label; there are no labels where no image has one.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        self._members = {"train": open_members(data_config.path, "data.path")}
        empty = Members(records.Records([], np.zeros(0, records.ENTRY)))
        self._members["test"] = (
            open_members(data_config.test_path, "data.test_path") if data_config.test_path else empty
        )
        largest = max(int(members.labels.max(initial=-1)) for members in self._members.values())
        self.num_classes = largest + 1
        self.class_names = tuple(map(str, range(self.num_classes)))
        self._check_readable(data_config)
        counts = f"{self.num_examples('train')} training and {self.num_examples('test')} test images"
        classes = f"{self.num_classes} classes" if self.num_classes else "no labels"
        self.description = f"tar {data_config.path}, {counts}, {classes}"

    def num_examples(self, split: str) -> int:
        return len(self._members[split].labels)

    def load(self, split: str) -> Encoded:
        members = self._members[split]
        return Encoded(members.images, members.labels, is_path=False)

    def _check_readable(self, data_config: Any) -> None:
        """Stops at the first image that can be read."""
        images, reason = self._members["train"].images, ""
        for index in range(len(images)):
            try:
                decode.decode(images[index], data_config.channels, exif=data_config.exif)
                return
            except Exception as error:  # the decoders raise a dozen types
                reason = reason or decode.reason_of(error)
        raise UserError(
            f"data.path={data_config.path!r} has no readable image, as the first of {len(images)} ({reason})"
        )


class Members(NamedTuple):
    """The images of some tar files."""

    images: records.Records

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32, -1 for none."""
        return self.images.entries["label"].astype(np.int32)


def open_members(path: str, field: str) -> Members:
    """Finds the images. Raises UserError where there is no tar file, or none with an image."""
    files = tar_files(path)
    if not files:
        raise UserError(f"{field}={path!r} has no .tar file: give a folder, a file, or a pattern such as 'train-*.tar'")
    folder = pathlib.Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]))
    entries = records.index_of(folder, f"tar-{field}", files, scan, key="tar")
    if not len(entries):
        raise UserError(
            f"{field}={path!r} has no image in {len(files)} .tar files: members must end in {EXTENSIONS[0]}, ..."
        )
    return Members(records.Records(files, entries))


def tar_files(path: str) -> list[str]:
    """The tar files of a folder, a pattern or a single name, sorted."""
    path = os.path.expanduser(path)
    pattern = os.path.join(glob.escape(path), "**", "*.tar") if os.path.isdir(path) else path
    return sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))


def scan(path: str) -> np.ndarray:
    """Where the images of a tar file lie: (N,) of `records.ENTRY`, of length -1 where a member is damaged.

    Raises:
      UserError: No tar file, or a label that is no whole number.
    """
    size, end = os.path.getsize(path), 0
    rows: list[tuple[int, int, int]] = []
    labels: dict[str, int] = {}
    keys: list[str] = []

    def add(key: str, place: int, length: int) -> None:
        keys.append(key)
        rows.append((place, length, -1))

    try:
        # ignore_zeros: behind a damaged header, goes on with the next whole one.
        with tarfile.open(path, "r:", ignore_zeros=True) as file, open(path, "rb") as data:
            for member in _members(file):
                if _is_damage(data, end, member.offset):
                    add("", end, -1)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not member.isfile():
                    continue
                key, _, ending = _split(member.name)
                if ending in LABELS:
                    data.seek(member.offset_data)
                    labels[key] = _number(data.read(min(member.size, 32)), path, member.name)
                elif ending and f".{ending.rsplit('.', 1)[-1]}" in EXTENSIONS:
                    cut_off = member.offset_data + member.size > size
                    add(key, member.offset_data, -1 if cut_off else member.size)
            if _is_damage(data, end, size) or (end > size and not (rows and rows[-1][1] < 0)):
                add("", min(end, size), -1)
    except tarfile.TarError as error:
        raise UserError(
            f"{path} cannot be read as a tar file ({error}): copy it again; compressed ones must be unpacked"
        ) from None
    entries = np.zeros(len(rows), records.ENTRY)
    if rows:
        entries["place"], entries["length"], _ = np.array(rows, np.int64).T
        entries["label"] = [labels.get(key, -1) for key in keys]
    return entries


def _members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members up to where the file was cut off, if it was. Raises TarError where there is not one."""
    seen = False
    while True:
        try:
            member = file.next()
        except tarfile.ReadError:
            if not seen:
                raise
            return
        if member is None:
            return
        seen = True
        file.members.clear()  # tarfile keeps them all, which would be gigabytes
        yield member


def _is_damage(data, start: int, stop: int) -> bool:
    """Whether something other than zeros lies between two members."""
    if start >= stop:
        return False
    data.seek(start)
    return any(data.read(min(stop - start, 1 << 20)))


def _split(name: str) -> tuple[str, str, str]:
    """`a/b.c/000.seg.png` -> (`a/b.c/000`, `.`, `seg.png`), as WebDataset groups members."""
    folder, base = os.path.split(name)
    stem, dot, ending = base.partition(".")
    return os.path.join(folder, stem), dot, ending.lower()


def _number(text: bytes, path: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{path}: {name} holds {text[:20]!r}: a label must be a whole number") from None
