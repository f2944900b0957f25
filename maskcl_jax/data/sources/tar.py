"""Tar files of images, as WebDataset writes them: `NAME.jpg` beside `NAME.cls`, which holds the number of the class.

Every image can be read on its own: where it lies is looked up in an index, which is made once and kept
(`sources.records`). A damaged member costs itself only: it counts as an image that cannot be read.

Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

import collections
import glob
import hashlib
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from maskcl_jax.data.decode import EXTENSIONS
from maskcl_jax.data.sources import records
from maskcl_jax.data.sources.base import Encoded, Source, examples, in_words
from maskcl_jax.data.sources.layout import check_files
from maskcl_jax.errors import UserError

LABELS = ("cls", "cls.txt")
# name: a hash of the member's name in the tar file. ending: "" of an image; else the entry is of all members with this
# ending (in UTF-8, cut) that belong to no image: its length is UNUSED, and its place counts them.
ENTRY = np.dtype([*records.ENTRY.descr, ("name", "<u8"), ("ending", "S16")])
UNUSED = -2


class TarSource(Source):
    """The images in the .tar files of `path`, and for testing of `test_path`: a folder, a file, or a pattern with *.

    The classes are the numbers from 0 to the largest label; there are no labels where no image has one. Of labeled
    images a tenth of every class is held out where no `test_path` is given, chosen by tar file and place in it.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        has_test = bool(data_config.test_path)
        members = open_members(data_config.path, "data.path", threads=data_config.threads, has_test=has_test)
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


def open_members(path: str, field: str, *, threads: int = 0, has_test: bool = True) -> records.Records:
    """Finds the images. What is not used is counted and named in the log.

    Args:
        path: A folder, a file, or a pattern.
        field: Where it was given.
        threads: That read files at a time, see `records.index_of`.
        has_test: Whether images to test on are given elsewhere.

    Raises:
        UserError: There is no tar file, none with an image, or there are files of several splits.
    """
    path = os.path.expanduser(path)
    pattern = os.path.join(glob.escape(path), "**", "*.tar") if os.path.isdir(path) else path
    files = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if not files:
        raise UserError(f"{field}={path!r} has no .tar file: give a folder, a file, or a pattern such as 'train-*.tar'")
    check_files(files, path, field, has_test=has_test)
    if os.path.isdir(path):
        warn_of_others(path)
    folder = pathlib.Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]))
    index = records.index_of(folder, files, scan, "tar with names and endings in UTF-8", threads=threads)
    unused, entries = index[index["length"] == UNUSED], index[index["length"] != UNUSED]
    if not len(entries):
        raise UserError(
            f"{field}={path!r} has no image in {len(files)} .tar files: members must end in {EXTENSIONS[0]}, ..."
        )
    kinds: collections.Counter[str] = collections.Counter()
    for kind in unused:
        kinds[kind["ending"].decode(errors="ignore") or "without ending"] += int(kind["place"])
    if kinds:
        logging.warning("%s: %d members belong to no image and are not used: %s", path, kinds.total(), in_words(kinds))
    if without := [files[i] for i in np.setdiff1d(np.arange(len(files)), entries["file"])]:
        logging.warning("%s: %d .tar files have no image: %s", path, len(without), examples(without))
    return records.Records(files, entries)


def warn_of_others(root: str) -> None:
    """Counts and names in the log what lies beside tar files."""
    others: collections.Counter[str] = collections.Counter()
    for _, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in files if not name.startswith(".") and not name.endswith(".tar")]
        others.update(os.path.splitext(name)[1].lower() or "without ending" for name in shown)
    if others:
        logging.warning("%s: %d files beside the .tar files are not used: %s", root, others.total(), in_words(others))


def scan(path: str) -> np.ndarray:
    """Where the images of a tar file lie, and what is not used: (N,) of `ENTRY`, of length -1 of damaged members.

    Raises:
        UserError: No tar file, or a label that is no whole number.
    """
    size, end = os.path.getsize(path), 0
    rows: list[tuple[str, int, int, int]] = []  # (key, place, length, hash of the name)
    labels: dict[str, int] = {}
    others: dict[str, list[bytes]] = collections.defaultdict(list)  # endings by key
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
                else:
                    # A name may have bytes that are no UTF-8.
                    others[key].append(os.path.splitext(base)[1].lower().encode(errors="replace"))
            if _is_damage(data, end, size) or (end > size and not (rows and rows[-1][2] < 0)):
                rows.append(("", min(end, size), -1, 0))
    except tarfile.TarError as error:
        raise UserError(
            f"{path} cannot be read as a tar file ({error}): copy it again; compressed ones must be unpacked"
        ) from None
    found = [(0, place, length, labels.get(key, -1), name, "") for key, place, length, name in rows]
    keys = {key for key, *_ in rows}
    unused = collections.Counter(ending for key, endings in others.items() if key not in keys for ending in endings)
    return np.array(found + [(0, count, UNUSED, -1, 0, ending) for ending, count in unused.items()], ENTRY)


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
