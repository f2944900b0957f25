"""One run per folder at a time."""

import errno
import fcntl
import gc
import os
import socket
import subprocess
import sys

import pytest
from helpers.processes import HOLD, Processes, arguments_of, environment, holder
from helpers.tiny import fields_of

from maskcl_jax.errors import UserError
from maskcl_jax.training.run_folder import lock_run


def test_a_second_run_is_refused_and_the_lock_of_a_killed_one_is_taken_over(tmp_path):
    (tmp_path / "run").mkdir()
    with holder(tmp_path / "run" / ".lock") as first:
        second = Processes(arguments_of("mae", tmp_path / "run", fields_of("mae")))
        assert second.wait() == [2]
    host = socket.gethostname()
    (line,) = [line for line in second.lines[0] if line.startswith("error:")]
    assert line.startswith(
        f"error: --workdir={tmp_path / 'run'} is in use by another run, process {first.pid} on {host}"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    lock_run(tmp_path / "run").close()


def test_the_folder_is_free_after_close_and_after_the_last_reference(tmp_path):
    lock = lock_run(tmp_path)
    again = lock_run(tmp_path)  # the same process
    lock.close()
    again.close()
    with holder(tmp_path / ".lock"):
        pass

    lock = lock_run(tmp_path)
    del lock
    gc.collect()
    with holder(tmp_path / ".lock") as other, pytest.raises(UserError, match=f"process {other.pid} on "):
        lock_run(tmp_path)
    lock_run(tmp_path)


def test_locking_twice_in_one_process_keeps_the_lock(tmp_path):
    first = lock_run(tmp_path)
    second = lock_run(tmp_path)
    del first
    gc.collect()
    command = [sys.executable, "-c", HOLD, tmp_path / ".lock"]
    done = subprocess.run(command, env=environment(1), capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on " in done.stderr
    second.close()


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    lock_run(tmp_path).close()
    assert "cannot be locked (No locks available): start only one run there" in capsys.readouterr().err
