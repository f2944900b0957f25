"""One run per folder at a time."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import weakref
from typing import TextIO

import jax

from maskcl_jax.errors import UserError
from maskcl_jax.training.distributed import exchange

# The files that this process has locked: closing a second handle of one of them would unlock it.
locked_files: weakref.WeakValueDictionary[pathlib.Path, TextIO] = weakref.WeakValueDictionary()


class RunLock:
    """Holds a run's folder until `close`, or until nothing refers to it, so that no other run writes there.

    An operating system's lock on `.lock` in the folder: it ends with its process, however that ends, so it is never
    stale. Over NFS it holds between hosts; in a mounted bucket only among the processes of one host. In a run of
    several processes, process 0 holds it for all. A process may lock a folder again.
    """

    def __init__(self, workdir: str | pathlib.Path) -> None:
        """Locks the folder. All processes of a run must call it.

        Args:
            workdir: The run's folder, which must exist.

        Raises:
            UserError: On all processes alike: another run holds the folder.
        """
        self.file, holder = None, ""
        if jax.process_index() == 0:
            self.file, holder = lock(pathlib.Path(workdir).absolute() / ".lock")
        if holder := exchange(holder)[0]:
            raise UserError(
                f"--workdir={workdir} is in use by another run, {holder}: wait until it has ended, or give another "
                "with --workdir=DIR"
            )

    def close(self) -> None:
        """Unlocks the folder."""
        if self.file is not None:
            self.file.close()


def lock(path: pathlib.Path) -> tuple[TextIO | None, str]:
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
