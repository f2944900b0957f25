"""Runs in processes of their own: `python -m maskcl_jax.main`, alone or several as one run."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from helpers.tiny import CONFIGS, ROOT


def environment(devices: int) -> dict[str, str]:
    """Environment variables for a process with so many CPU devices."""
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def command(*arguments: str) -> list[str]:
    """The command that trains."""
    return [sys.executable, "-m", "maskcl_jax.main", *arguments]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def arguments_of(name: str, workdir, fields: dict) -> list[str]:
    """What follows `command()` for a method's synthetic preset with some fields set."""
    values = [f"--config.{key}={value}" for key, value in fields.items()]
    return [f"--config={CONFIGS[name]}:synthetic", *values, f"--workdir={workdir}"]


HOLD = """
import pathlib, sys, time
from maskcl_jax.training.run_folder import FileLock
lock = FileLock(pathlib.Path(sys.argv[1]), "it is in use", "wait")
print("locked", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def holder(file: pathlib.Path) -> Iterator[subprocess.Popen]:
    """A process that holds a lock; it is killed at the end."""
    command = [sys.executable, "-c", HOLD, file]
    process = subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.wait()


class Processes:
    """The processes of one run, and their output line by line."""

    def __init__(self, arguments: list[str], count: int = 1, *, devices: int = 1):
        """Starts `count` processes with the same arguments, each with so many devices."""
        flags = []
        if count > 1:
            flags = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"]
            flags += ["--heartbeat_timeout=20", "--initialization_timeout=100"]
        self.lines, self.threads, self.processes = [[] for _ in range(count)], [], []
        for i in range(count):
            which = [*flags, f"--process_id={i}"] if count > 1 else []
            process = subprocess.Popen(
                command(*arguments, *which),
                env=environment(devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            thread = threading.Thread(target=self.listen, args=(i, process), daemon=True)
            thread.start()
            self.processes.append(process)
            self.threads.append(thread)

    def listen(self, i: int, process) -> None:
        """Collects the output of one process."""
        for line in process.stdout:
            self.lines[i].append(line.rstrip())

    def text(self, i: int = 0) -> str:
        """The output of one process so far."""
        return "\n".join(self.lines[i])

    def until(self, start: str) -> None:
        """Waits until process 0 has printed a line that starts so, or has ended."""
        while self.processes[0].poll() is None and not any(line.startswith(start) for line in self.lines[0]):
            time.sleep(0.02)

    def wait(self, timeout: float = 240) -> list[int]:
        """The exit statuses; kills what has not ended in time."""
        end = time.monotonic() + timeout
        try:
            statuses = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        for thread in self.threads:
            thread.join()
        return statuses
