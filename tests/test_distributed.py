"""Runs of several processes through `main`: found, agreed, lost, stopped, gone on.

`python tests/test_distributed.py DIR` shows in DIR what would take too long here (`prove`).
"""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from test_train import CONFIGS, command, environment, fields_of, saved_state

from maskcl_jax.errors import UserError
from maskcl_jax.training import distributed

TOTAL = 40
OVERRIDES = {
    "total_steps": TOTAL,
    "checkpoint.every_epochs": 1.0,  # 8 steps
    "eval.pictures": 0,
    "log.every_seconds": 0.0,
}


class Processes:
    """The processes of one run, and what they say, line by line with the time."""

    def __init__(self, workdir, count: int, *, name="mae", devices=1, flags=()):
        fields = {**fields_of(name), **OVERRIDES}
        arguments = [f"--config={CONFIGS[name]}:synthetic", *(f"--config.{k}={v}" for k, v in fields.items())]
        arguments += [f"--workdir={workdir}", "--heartbeat_timeout=20", "--initialization_timeout=100", *flags]
        stub = (
            pathlib.Path(workdir).with_name("stub") / "tensorflow.py"
        )  # a machine without TensorFlow: it starts sooner
        stub.parent.mkdir(exist_ok=True)
        stub.write_text("raise ImportError('left out')")
        env = environment(devices)
        env["PYTHONPATH"] += f":{stub.parent}"
        told = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"] if count > 1 else []
        self.said, self.threads, self.processes = [[] for _ in range(count)], [], []
        for i in range(count):
            place = [*told, f"--process_id={i}"] if count > 1 else []
            process = subprocess.Popen(
                command(*arguments, *place),
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            thread = threading.Thread(target=self.listen, args=(i, process), daemon=True)
            thread.start()
            self.processes.append(process)
            self.threads.append(thread)

    def listen(self, i: int, process) -> None:
        for line in process.stdout:
            self.said[i].append(line.rstrip())

    def text(self, i: int) -> str:
        return "\n".join(self.said[i])

    def until(self, start: str) -> None:
        """Waits until process 0 has said a line that starts so, or is gone."""
        while self.processes[0].poll() is None and not any(line.startswith(start) for line in self.said[0]):
            time.sleep(0.02)

    def wait(self, timeout: float = 240) -> list[int]:
        """The exit statuses."""
        end = time.monotonic() + timeout
        try:
            statuses = [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        for thread in self.threads:
            thread.join()
        return statuses


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


SPEED = ("images_per_second", "images_per_second_per_device", "data_wait", "mfu")


def metrics_of(workdir) -> list[dict]:
    """The rows of metrics.jsonl, without speed."""
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows]


def test_two_processes_are_one_run_even_when_one_is_to_go(tmp_path):
    alone = Processes(tmp_path / "alone", 1, devices=2)
    assert alone.wait() == [0], alone.text(0)
    # SIGTERM on one: both save after the same step, and say by their status that they may be started again.
    stopped = Processes(tmp_path / "two", 2)
    stopped.until("5/")
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.wait() == [128 + signal.SIGTERM] * 2, stopped.text(0) + stopped.text(1)
    assert "stopped by SIGTERM" in stopped.text(0)
    assert f"/{TOTAL}" not in stopped.text(1)  # process 0 alone speaks
    # The rest in one process: the run ends as the other did, bit for bit.
    resumed = Processes(tmp_path / "two", 1, devices=2)
    assert resumed.wait() == [0], resumed.text(0)
    assert "on 1 processes with 2 devices, before on 2 with 2" in resumed.text(0)
    assert metrics_of(tmp_path / "two") == metrics_of(tmp_path / "alone")


def prove(folder: str) -> None:
    """What would be too long for a test: one of two processes is killed after a checkpoint, and both started again."""
    folder = pathlib.Path(folder)
    print("two processes, undisturbed:", Processes(folder / "straight", 2).wait())
    killed = Processes(folder / "killed", 2)
    killed.until("19/")  # saving step 16 waits for the checkpoint of step 8
    killed.processes[1].kill()
    gone = time.monotonic()
    print(
        "process 1 killed:",
        killed.wait(),
        f"process 0 ends {time.monotonic() - gone:.1f} s later: {killed.said[0][-1]}",
    )
    again = Processes(folder / "killed", 2)
    print("both again:", again.wait(), [line for line in again.said[0] if "resumed" in line])
    print("rows of metrics.jsonl alike:", metrics_of(folder / "killed") == metrics_of(folder / "straight"))
    states = [saved_state(folder / run, "mae") for run in ("killed", "straight")]
    print("last checkpoints alike:", all(jax.tree.leaves(jax.tree.map(np.array_equal, *states))))


REDUCE = """
import sys
from maskcl_jax import distributed
distributed.join(distributed.Place(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout=20), {}, "")
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
multihost_utils.process_allgather(jnp.ones(1))
print("joined", flush=True)
with distributed.ending_with_the_others():
    while True:
        multihost_utils.process_allgather(jnp.ones(1))
"""


def test_a_process_that_is_killed_ends_the_others():
    address = f"localhost:{free_port()}"
    pipes = {"env": environment(1), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", REDUCE, address, str(i)], **pipes) for i in range(2)]
    for process in both:  # not before they have computed together: Gloo speaks first
        assert any(line == "joined\n" for line in process.stdout)
    both[1].kill()
    error = both[0].communicate(timeout=60)[1].strip().splitlines()[-1]
    both[1].communicate()
    assert both[0].returncode == 1
    assert error.startswith("error: process 0 of 2 cannot go on")


JOIN = """
import sys
from maskcl_jax import distributed
from maskcl_jax.errors import UserError
address, count, number, size = sys.argv[1], *map(int, sys.argv[2:])
place = distributed.Place(address, count, number, initialization_timeout=TIMEOUT)
try:
    distributed.join(place, {"batch_size": size, "data": {"path": "here"}}, "runs/x")
except UserError as error:
    print(error)
"""


def joining(timeout: int, *arguments) -> subprocess.Popen:
    """A process that only joins: address, how many, which, and its config's batch size."""
    child = [sys.executable, "-c", JOIN.replace("TIMEOUT", str(timeout)), *map(str, arguments)]
    return subprocess.Popen(child, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_were_started_differently_are_told():
    address = f"localhost:{free_port()}"
    both = [joining(60, address, 2 + i, i, 8 + i) for i in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    expected = (
        "--num_processes is 3 on process 1, 2 on 0; batch_size is 9 on process 1, 8 on 0: start all processes with"
    )
    assert [line.startswith(expected) for line in said] == [True, True], said


def test_a_process_that_does_not_arrive_ends_the_others():
    process = joining(2, f"localhost:{free_port()}", 2, 0, 8)
    error = process.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert process.returncode == 1
    assert error.startswith("error: after 2 s not all processes are there (this is number 0 of 2")


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # in a batch script, outside of srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ],
)
def test_the_surroundings_are_noticed(variables, found, monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.surroundings() == found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coordinator": "host"}, "--coordinator=host has no port"),
        ({"num_processes": 0}, "--num_processes=0 is out of range"),
        ({"num_processes": 2, "process_id": 2}, "--process_id=2 is out of range: use 0 to 1"),
        ({"heartbeat_timeout": 0}, "--heartbeat_timeout=0 is out of range"),
    ],
)
def test_no_place_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        distributed.check(distributed.Place(**fields))


if __name__ == "__main__":
    prove(sys.argv[1])
