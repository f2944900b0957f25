"""Tar files of images, as WebDataset writes them: `NAME.jpg` beside `NAME.cls`, which holds the number of the class.

Every image can be read on its own: where it lies is looked up in an index, which is made once and kept
(`sources.records`). A damaged member costs itself only: it counts as an image that cannot be read.

Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

import glob
import hashlib
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from maskcl_jax.data.decode import EXTENSIONS
from maskcl_jax.data.sources import records
from maskcl_jax.data.sources.base import Encoded, Source
from maskcl_jax.errors import UserError

LABELS = ("cls", "cls.txt")
# `name`: a hash of the member's name in the tar file.
ENTRY = np.dtype([*records.ENTRY.descr, ("name", "<u8")])


class TarSource(Source):
    """The images in the .tar files of `path`, and for testing of `test_path`: a folder, a file, or a pattern with *.

    The classes are the numbers from 0 to the largest label; there are no labels where no image has one. Of labeled
    images a tenth of every class is held out where no `test_path` is given, chosen by tar file and place in it.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        members = open_members(data_config.path, "data.path", threads=data_config.threads)
        train = _encoded(members)
        test = train.take(np.arange(0))
        if data_config.test_path:
            test = _encoded(open_members(data_config.test_path, "data.test_path", threads=data_config.threads))
        elif train.labels.max() >= 0:
            train, test = train.hold_out(members.names())
        self._opened = {"train": train, "test": test}
        self.num_classes = max(int(split.labels.max(initial=-1)) for split in self._opened.values()) + 1
        self.class_names = tuple(map(str, range(self.num_classes)))
        self.check_readable(train, f"data.path={data_config.path!r}", data_config)
        self.description = self.describe(f"tar {data_config.path}")

    def load(self, split: str) -> Encoded:
        return self._opened[split]


def _encoded(members: records.Records) -> Encoded:
    entries = members.entries
    marks = np.stack([entries["name"], entries["length"].astype(np.uint64)], axis=1)
    return Encoded(members, entries["label"].astype(np.int32), is_path=False, marks=marks)


def open_members(path: str, field: str, *, threads: int = 0) -> records.Records:
    """Finds the images. Raises UserError where there is no tar file, or none with an image."""
    path = os.path.expanduser(path)
    pattern = os.path.join(glob.escape(path), "**", "*.tar") if os.path.isdir(path) else path
    files = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if not files:
        raise UserError(f"{field}={path!r} has no .tar file: give a folder, a file, or a pattern such as 'train-*.tar'")
    folder = pathlib.Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]))
    entries = records.index_of(folder, files, scan, "tar with names", threads=threads)
    if not len(entries):
        raise UserError(
            f"{field}={path!r} has no image in {len(files)} .tar files: members must end in {EXTENSIONS[0]}, ..."
        )
    return records.Records(files, entries)


def scan(path: str) -> np.ndarray:
    """Where the images of a tar file lie: (N,) of `ENTRY`, of length -1 where a member is damaged.

    Raises:
        UserError: No tar file, or a label that is no whole number.
    """
    size, end = os.path.getsize(path), 0
    rows: list[tuple[str, int, int, int]] = []  # (key, place, length, hash of the name)
    labels: dict[str, int] = {}
    try:
        # ignore_zeros: behind a damaged header, goes on with the next whole one.
        with tarfile.open(path, "r:", ignore_zeros=True) as file, open(path, "rb") as data:
            for member in _members(file):
                if _is_damage(data, end, member.offset):
                    rows.append(("", end, -1, 0))
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                # As WebDataset groups members: `a/b.c/000.seg.png` is of `a/b.c/000`, its ending `seg.png`.
                folder, base = os.path.split(member.name)
                stem, _, ending = base.partition(".")
                key = os.path.join(folder, stem)
                if not member.isfile():
                    continue
                if ending.lower() in LABELS:
                    data.seek(member.offset_data)
                    labels[key] = _number(data.read(min(member.size, 32)), path, member.name)
                elif base.lower().endswith(EXTENSIONS):
                    whole = member.offset_data + member.size <= size
                    rows.append((key, member.offset_data, member.size if whole else -1, _hash(member.name)))
            if _is_damage(data, end, size) or (end > size and not (rows and rows[-1][2] < 0)):
                rows.append(("", min(end, size), -1, 0))
    except tarfile.TarError as error:
        raise UserError(
            f"{path} cannot be read as a tar file ({error}): copy it again; compressed ones must be unpacked"
        ) from None
    return np.array([(0, place, length, labels.get(key, -1), name) for key, place, length, name in rows], ENTRY)


def _members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members up to where the file was cut off, if it was. Raises TarError where there is not one."""
    member = file.next()
    while member is not None:
        vars(file)["members"].clear()  # tarfile keeps them all, which would be gigabytes
        yield member
        try:
            member = file.next()
        except tarfile.ReadError:
            return


def _is_damage(data: BinaryIO, start: int, stop: int) -> bool:
    """Whether something other than zeros lies between two members."""
    data.seek(start)
    return any(data.read(min(max(stop - start, 0), 1 << 20)))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _number(text: bytes, path: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{path}: {name} holds {text[:20]!r}: a label must be a whole number") from None
