"""The folder of a run: whose it is, the config that it was started with, and its lock: one run at a time.

It holds `config.json`, `checkpoints/<step>/`, `metrics.jsonl`, TensorBoard events and `pictures/`; once the run is done
also the closing table, `summary.json`, and the page `report.html`.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError, first_line
from maskcl_jax.training import checkpoint_metadata
from maskcl_jax.training.distributed import exchange

SUMMARY = "summary.json"  # {name: text}, the closing table

# Fields that change what is shown or kept, or where it is computed, not what is learned: they may differ when a run
# is resumed.
FREE_FIELDS = (
    "compile_cache",
    "log.",
    "checkpoint.",
    "eval.",
    "data.threads",
    "data.cache_mb",
    "data.accept_changes",
    "data.workers",
    # Where the data lie; whether they are the same is `check_data`'s matter.
    "data.data_dir",
    "data.path",
    "data.test_path",
    "data.list",
    "data.test_list",
    "mesh.",
    "remat",
    "scan",
    "image_chunks",
    "kernels",
    "model.attention",
    "augment.photometric",
)

# The files that this process has locked: closing a second handle of one of them would unlock it.
locked_files: weakref.WeakValueDictionary[pathlib.Path, TextIO] = weakref.WeakValueDictionary()


class FileLock:
    """Holds a lock until `close`, or until nothing refers to it, so that no other process writes the same files.

    An operating system's lock on a file: it ends with its process, however that ends, so it is never stale. Over NFS it
    holds between hosts; in a mounted bucket only among the processes of one host. In a run of several processes,
    process 0 holds it for all. A process may lock a file again.
    """

    def __init__(self, path: pathlib.Path, what: str, remedy: str) -> None:
        """Locks. All processes of a run must call it.

        Args:
            path: The file, in a folder that exists.
            what: For the error: what is in use.
            remedy: For the error: what to do.

        Raises:
            UserError: On all processes alike: another process holds the lock, or the file cannot be written.
        """
        self.file, problem = None, ""
        if jax.process_index() == 0:
            try:
                self.file, holder = lock_file(path.absolute())
                problem = f"{what}, {holder}: {remedy}" if holder else ""
            except OSError as error:
                problem = f"{path.parent} is not writable ({error.strerror}): give another place"
        if problem := exchange(problem)[0]:
            raise UserError(problem)

    def close(self) -> None:
        """Unlocks."""
        if self.file is not None:
            self.file.close()


def lock_run(workdir: str | pathlib.Path) -> FileLock:
    """Locks a run's folder, which must exist. Raises UserError where another run holds it."""
    remedy = "wait until it has ended, or give another with --workdir=DIR"
    return FileLock(pathlib.Path(workdir) / ".lock", f"--workdir={workdir} is in use by another run", remedy)


def lock_file(path: pathlib.Path) -> tuple[TextIO | None, str]:
    """(the locked file, ""), or (None, who holds it)."""
    if (ours := locked_files.get(path)) is not None and not ours.closed:
        return ours, ""
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None, describe_holder(path)
        warning = f"warning: {path.parent} cannot be locked ({error.strerror}): start only one run there"
        print(warning, file=sys.stderr, flush=True)
    locked_files[path] = file
    file.truncate(0)
    started = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
    file.flush()
    return file, ""


def describe_holder(path: pathlib.Path) -> str:
    """Which process has locked a file."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return "process {pid} on {host}, started {started}".format(**json.loads(path.read_text()))
    return "which does not say where it runs"


def differences(config: ConfigDict, other: dict[str, Any]) -> list[str]:
    """The fields, apart from FREE_FIELDS, in which a config differs from a stored one."""
    return differing(config_lib.with_defaults(other), config_lib.flat(config))


def differing(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The fields, apart from FREE_FIELDS, in which two flat configs differ."""
    return [
        f"{field}: {there.get(field, 'absent')} there, {here.get(field, 'absent')} here"
        for field in sorted(there.keys() | here.keys())
        if not field.startswith(FREE_FIELDS) and there.get(field) != here.get(field)
    ]


def folder_of(workdir: str | pathlib.Path) -> pathlib.Path:
    """The run's folder. Raises UserError for a bucket's address, which pathlib takes for the name of a folder here."""
    if "://" in str(workdir):
        raise UserError(
            f"--workdir={workdir} is the address of a bucket, not a folder: mount the bucket (gcsfuse BUCKET DIR) and "
            "give a folder in DIR"
        )
    return pathlib.Path(workdir)


def claim(workdir: str | pathlib.Path, config: ConfigDict) -> FileLock:
    """Makes `workdir` this run's: locks it, and writes config.json or checks the one that is there.

    Returns the lock, which holds until it is closed. Raises UserError where the folder cannot be written, is in use by
    another run, or holds the run of another config.
    """
    folder = folder_of(workdir)
    record = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} is not writable ({error.strerror}): give another with --workdir=DIR"
        ) from None
    with contextlib.ExitStack() as unlocking:
        lock = unlocking.enter_context(contextlib.closing(lock_run(folder)))
        if record.exists() or config_of_checkpoint(folder):
            if differing := differences(config, read_config(workdir)):
                raise UserError(
                    f"--workdir={workdir} holds the run of another config ({'; '.join(differing)}): "
                    "give another with --workdir=DIR, or remove that folder"
                )
        elif jax.process_index() == 0:
            write_text(record, json.dumps(config_lib.flat(config), indent=1))
        unlocking.pop_all()  # no error: the lock stays with the caller
    return lock


def read_config(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The flat config that a run was started with, from config.json or else from the copy in its newest checkpoint.

    Raises:
        UserError: There is neither, or they differ.
    """
    folder = folder_of(workdir)
    record, copy = folder / "config.json", config_of_checkpoint(folder)
    try:
        config = json.loads(record.read_text())
        if not (isinstance(config, dict) and isinstance(config.get("method.name"), str)):
            raise ValueError("it holds no config")
    except (OSError, ValueError) as error:  # among them what is no JSON, and no text
        if copy:
            return copy
        raise UserError(f"{record} cannot be read ({first_line(error)}): is this the folder of a run?") from None
    # Only what both have: either may be of a version without some fields.
    shared = config.keys() & copy.keys() if copy else set()
    if copy and (found := differing(*({name: of[name] for name in shared} for of in (config, copy)))):
        raise UserError(
            f"{record} is not the config that the newest checkpoint was made with ({'; '.join(found)}): correct it, or "
            "remove it, and the checkpoint's copy is used"
        )
    return config


def config_of_checkpoint(folder: pathlib.Path) -> dict[str, Any] | None:
    """The copy of the config that a run's newest checkpoint with whole metadata keeps; None where there is none."""
    return checkpoint_metadata.newest(folder / "checkpoints").get("config")


def write_summary(workdir: str, rows: Mapping[str, str]) -> None:
    """Keeps the closing table of a run, name -> text."""
    write_text(folder_of(workdir) / SUMMARY, json.dumps(rows, indent=1))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a whole file or none: beside its place first, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)
