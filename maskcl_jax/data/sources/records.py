"""Random access to files of records, as TFDS prepares data sets: TFRecord and ArrayRecord.

A TFRecord file is a sequence of: length (8 bytes, little-endian), its checksum (4), the record, its checksum (4). An
index of where each record begins, with the labels, is made once for each file and kept: in the folder of the data, or
in the user's cache where that folder is read-only. A record is a `tf.train.Example`, a protocol buffer that maps names
to values.

Source: tensorflow.org/tutorials/load_data/tfrecord, protobuf.dev/programming-guides/encoding.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from maskcl_jax.errors import UserError, import_problem

# One entry a record. file: which of the files. place: of a TFRecord file, the record's first byte; of an ArrayRecord
# file, its number. length: in bytes, 0 where it is not known, -1 of a damaged one. label: -1 for none.
ENTRY = np.dtype([("file", "<i4"), ("place", "<i8"), ("length", "<i8"), ("label", "<i4")])
HEADER, FOOTER = 12, 4  # bytes before and after a record
WINDOW = 4096  # bytes read at once in search of a label; a longer image before it is stepped over, not read
THREADS = 16  # that make an index where data.threads is 0: reading a little in many places is waiting
SAY_SECONDS = 15.0  # between two lines on the progress of an index
VERSION = 2  # of the index files
VARINT, DELIMITED = 0, 2  # wire types of a protocol buffer

Peek = Callable[[int, int], bytes]  # (position, count) -> those bytes of a record, or more
Scan = Callable[[str], np.ndarray]  # finds the records of a file


class Records(Sequence):
    """Some records of some files, read one by one.

    Args:
        files: Their paths.
        entries: (N,) of `ENTRY`, perhaps with further fields.
    """

    def __init__(self, files: Sequence[str], entries: np.ndarray):
        self.files, self.entries = list(files), entries
        self._readers: dict[int, Sequence[bytes]] = {}  # of ArrayRecord files

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        """The record (bytes) at `index`. Raises OSError where it cannot be read."""
        file, place, length, *_ = self.entries[index].item()
        if length < 0:
            raise OSError(f"{self.files[file]} is damaged at byte {place}")
        if is_array_record(self.files[file]):
            if file not in self._readers:
                self._readers[file] = array_records(self.files[file])
            return self._readers[file][place]
        with open(self.files[file], "rb", buffering=0) as opened:
            record = os.pread(opened.fileno(), length, place)
        if len(record) < length:
            raise OSError(f"{self.files[file]} ends inside a record")
        return record

    def names(self) -> list[str]:
        """What tells each record from the others, wherever the files lie."""
        bases = [os.path.basename(file) for file in self.files]
        return [f"{bases[file]}/{place}" for file, place in self.entries[["file", "place"]].tolist()]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_readers": {}}  # a worker process opens its own


def is_array_record(path: str) -> bool:
    """Whether a file is an ArrayRecord file, by its name."""
    return ".array_record" in os.path.basename(path)


def array_records(path: str) -> Sequence[bytes]:
    """The records of an ArrayRecord file. Raises UserError where the library cannot be used."""
    if reason := import_problem("array_record.python.array_record_data_source", "ArrayRecordDataSource"):
        raise UserError(f"{path} needs array_record, and {reason}: install it, or prepare the data set as tfrecord")
    from array_record.python.array_record_data_source import ArrayRecordDataSource  # only where there is such a file

    return ArrayRecordDataSource([path])


def values(record: bytes, names: Sequence[str]) -> dict[str, bytes | int]:
    """The values of an Example by name, of those names that it has: bytes, or a whole number.

    Of a list the first value. Raises ValueError for what is no Example.
    """
    return _values(lambda at, count: record[at : at + count], len(record), names)


def _values(peek: Peek, length: int, names: Sequence[str]) -> dict[str, bytes | int]:
    found: dict[str, bytes | int] = {}
    for _, start, stop in _fields(peek, 0, length):  # Example.features
        for _, entry, end in _fields(peek, start, stop):  # Features.feature, a map
            (_, a, b), (_, value, _) = _fields(peek, entry, end)
            name = peek(a, b - a)[: b - a].decode()
            if name in names:
                for kind, first, last in _fields(peek, value, end):  # Feature: bytes_list = 1, int64_list = 3
                    found.update((name, item) for item in _first(peek, kind, first, last))
                if len(found) == len(names):
                    return found
    return found


def _first(peek: Peek, kind: int, start: int, stop: int) -> Iterator[bytes | int]:
    """The first value of a BytesList or an Int64List; nothing of any other."""
    for _, first, last in _fields(peek, start, stop):
        if kind == 1:
            yield peek(first, last - first)[: last - first]
        elif kind == 3:
            number, _ = _varint(peek, first)
            yield number - (number >> 63 << 64)
        return


def _fields(peek: Peek, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of every field of a message that lies at at..stop."""
    while at < stop:
        tag, at = _varint(peek, at)
        if tag & 7 == DELIMITED:
            size, at = _varint(peek, at)
        elif tag & 7 == VARINT:
            size = _varint(peek, at)[1] - at
        else:
            raise ValueError("not a tf.train.Example")
        if at + size > stop:
            raise ValueError("a tf.train.Example that ends early")
        yield tag >> 3, at, at + size
        at += size


def _varint(peek: Peek, at: int) -> tuple[int, int]:
    """A number of base 128, lowest digits first, and where it ends."""
    number = shift = 0
    for digit in peek(at, 10)[:10]:
        at += 1
        number |= (digit & 127) << shift
        if digit < 128:
            return number, at
        shift += 7
    raise ValueError("a number without end in a tf.train.Example")


def index_of(
    folder: pathlib.Path, files: Sequence[str], scan_file: Callable[[str], np.ndarray], key: str, *, threads: int = 0
) -> np.ndarray:
    """Where all records of some files lie: (N,) of `ENTRY`, in the order of the files.

    Reads what was kept of each file, makes what is missing or older than its data, and keeps it. So an interrupted call
    goes on where it stopped.

    Args:
        folder: The files lie in or under it.
        files: Their paths.
        scan_file: Finds the records of one.
        key: What else the index depends on.
        threads: That read files at a time; 0: `THREADS`.

    Raises:
        UserError: A file is missing, or what `scan_file` raises.
    """
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise UserError(f"{missing[0]} is missing, one of {len(files)} files: copy it, or prepare the data set again")
    parts, start = [], time.monotonic()
    said = start
    with concurrent.futures.ThreadPoolExecutor(threads or THREADS) as pool:
        for number, part in enumerate(pool.map(lambda file: _index_of(folder, file, scan_file, key), files)):
            part["file"] = number
            parts.append(part)
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                logging.warning("index of %s: %d of %d files, %.0f s", folder, len(parts), len(files), said - start)
    return np.concatenate(parts)


def _index_of(folder: pathlib.Path, file: str, scan_file: Scan, key: str) -> np.ndarray:
    """The entries of one file, kept or made."""
    stat = os.stat(file)
    stamp = f"{VERSION} {key} {stat.st_size} {stat.st_mtime_ns}"  # changes when the file does
    kept = [place / f"{os.path.relpath(file, folder)}.npz" for place in _places(folder)]
    for path in kept:
        with contextlib.suppress(OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile), np.load(path) as index:
            if index["stamp"] == stamp:
                return index["entries"]
    entries = scan_file(file)
    for path in kept:
        beside = path.with_name(f"{uuid.uuid4().hex}.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(beside, stamp=stamp, entries=entries)
            os.replace(beside, path)  # whole, or not at all, for whoever reads it meanwhile
            return entries
        except OSError:  # read-only, or full
            with contextlib.suppress(OSError):
                beside.unlink()
    logging.warning("the index of %s cannot be kept in %s", file, " or ".join(str(path.parent) for path in kept))
    return entries


def _places(folder: pathlib.Path) -> list[pathlib.Path]:
    """Where indices are kept: beside the data unless their folder is read-only, or in the user's cache."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    number = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
    # Root could write in a read-only folder all the same.
    beside = [folder / ".maskcl_jax"] if folder.stat().st_mode & 0o222 else []
    return [*beside, cache / "maskcl_jax" / number]


def scan(path: str, count: int, label: str) -> np.ndarray:
    """Finds the records of one file: (count,) of `ENTRY`. Raises UserError where it does not hold `count` of them."""
    try:
        found = _scan_array_record(path, label) if is_array_record(path) else _scan_tfrecord(path, label)
    except (EOFError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged or truncated ({error}): copy it again, or prepare the data set again"
        ) from None
    if len(found) != count:
        raise UserError(
            f"{path} has {len(found)} records where dataset_info.json says {count}: copy it again, or prepare the data "
            "set again"
        )
    entries = np.zeros(count, ENTRY)
    entries["place"], entries["length"], entries["label"] = np.array(found, np.int64).reshape(-1, 3).T
    return entries


def _scan_tfrecord(path: str, label: str) -> list[tuple[int, int, int]]:
    """(place, length, label) of every record."""
    found, at = [], 0
    with open(path, "rb", buffering=0) as file:
        descriptor, size = file.fileno(), os.path.getsize(path)
        while at < size:
            window = os.pread(descriptor, WINDOW, at)
            length = int.from_bytes(window[:8], "little")
            first, following = at + HEADER, at + HEADER + length + FOOTER
            if len(window) < HEADER or following > size:
                raise EOFError(f"record {len(found)} ends behind the file")
            found.append((first, length, _label(_windows(descriptor, first, window[HEADER:]), length, label)))
            at = following
    return found


def _scan_array_record(path: str, label: str) -> list[tuple[int, int, int]]:
    """The same; the records are read whole, as the format wants it."""
    records = array_records(path)
    if not label:
        return [(place, 0, -1) for place in range(len(records))]
    return [(place, 0, int(values(records[place], [label]).get(label, -1))) for place in range(len(records))]


def _label(peek: Peek, length: int, name: str) -> int:
    return int(_values(peek, length, [name]).get(name, -1)) if name else -1


def _windows(descriptor: int, first: int, window: bytes) -> Peek:
    """Reads a record of a file at `first`, a window at a time."""
    start = 0

    def peek(position: int, count: int) -> bytes:
        nonlocal start, window
        if not start <= position <= position + count <= start + len(window):
            start, window = position, os.pread(descriptor, max(count, WINDOW), first + position)
        return window[position - start : position - start + count]

    return peek
