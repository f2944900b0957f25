"""One run per folder at a time."""

import errno
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers.processes import Processes, arguments_of, environment
from helpers.tiny import fields_of, rows

from maskcl_jax.errors import UserError
from maskcl_jax.training.run_folder import RunLock

ENDLESS = {"total_steps": 100_000, "eval.pictures": 0, "log.every_seconds": 0.0, "checkpoint.every_epochs": 0.0}

HOLD = """
import sys, time
from maskcl_jax.training.run_folder import RunLock
lock = RunLock(sys.argv[1])
print("locked", flush=True)
time.sleep(60)
"""


def another_process(folder):
    """A process that holds a folder."""
    command = [sys.executable, "-c", HOLD, folder]
    process = subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_run_is_refused_and_the_lock_of_a_killed_one_is_taken_over(tmp_path):
    command = arguments_of("mae", tmp_path / "run", fields_of("mae") | ENDLESS)
    first = Processes(command)
    first.until("2/")
    second = Processes(command)
    assert second.wait() == [2]
    pid, host = first.processes[0].pid, socket.gethostname()
    (line,) = [line for line in second.lines[0] if line.startswith("error:")]
    assert line.startswith(f"error: --workdir={tmp_path / 'run'} is in use by another run, process {pid} on {host}")
    assert not any("100000" in line and "/" in line.split()[0] for line in second.lines[0])
    first.processes[0].kill()
    assert first.wait() == [-signal.SIGKILL]
    third = Processes(command)
    third.until("1/")
    third.processes[0].send_signal(signal.SIGTERM)
    assert third.wait() == [128 + signal.SIGTERM], third.text()
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == sorted(set(steps))


def test_the_folder_is_free_after_close_and_after_the_last_reference(tmp_path):
    lock = RunLock(tmp_path)
    again = RunLock(tmp_path)  # the same process
    lock.close()
    again.close()
    other = another_process(tmp_path)
    other.kill()
    other.wait()

    lock = RunLock(tmp_path)
    del lock
    gc.collect()
    other = another_process(tmp_path)
    with pytest.raises(UserError, match=f"process {other.pid} on "):
        RunLock(tmp_path)
    other.kill()
    other.wait()
    RunLock(tmp_path)


def test_locking_twice_in_one_process_keeps_the_lock(tmp_path):
    first = RunLock(tmp_path)
    second = RunLock(tmp_path)
    del first
    gc.collect()
    done = subprocess.run(
        [sys.executable, "-c", HOLD, tmp_path], env=environment(1), capture_output=True, text=True, check=False
    )
    assert f"process {os.getpid()} on " in done.stderr
    second.close()


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    RunLock(tmp_path).close()
    assert "cannot be locked (No locks available): start only one run there" in capsys.readouterr().err
