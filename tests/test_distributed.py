"""Runs of several processes through `main`: joined, compared, lost, stopped, resumed.

`python tests/test_distributed.py DIR` shows in DIR what would take too long here (`prove`).
"""

import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.processes import Processes, arguments_of, environment, free_port
from helpers.tiny import ROOT, fields_of, rows_without_speed, saved_state

from maskcl_jax.errors import UserError
from maskcl_jax.training import distributed

TOTAL = 40
OVERRIDES = {
    "total_steps": TOTAL,
    "checkpoint.every_epochs": 1.0,  # 8 steps
    "eval.pictures": 0,
    "log.every_seconds": 0.0,
}


def start(workdir, count: int, *, devices: int = 1) -> Processes:
    """A run of MAE in some processes."""
    return Processes(arguments_of("mae", workdir, fields_of("mae") | OVERRIDES), count, devices=devices)


# The rest of a run, and the whole of another, in one process: it takes seconds to start.
REST = f"""
import sys
sys.path.insert(0, "tests")
from helpers.tiny import tiny
from maskcl_jax.training import loop
for run in ("two", "alone"):
    loop.train(tiny("mae", **{OVERRIDES!r}), sys.argv[1] + "/" + run)
"""


def test_two_processes_are_one_run_and_stop_together(tmp_path):
    # SIGTERM on one: both save after the same step, and their status says that they may be started again.
    stopped = start(tmp_path / "two", 2)
    stopped.until("5/")
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.wait() == [128 + signal.SIGTERM] * 2, stopped.text(0) + stopped.text(1)
    assert "stopped by SIGTERM" in stopped.text(0)
    assert f"/{TOTAL}" not in stopped.text(1)  # process 0 alone prints
    saved = rows_without_speed(tmp_path / "two")[-1]["step"]
    assert 5 <= saved < TOTAL
    # The rest in one process: it takes the remaining steps only, and ends as the other run did, bit for bit.
    child = [sys.executable, "-c", REST, str(tmp_path)]
    rest = subprocess.run(child, env=environment(2), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert f"resumed from step {saved} on 1 processes with 2 devices, before on 2 with 2" in rest
    steps = [int(line.partition("/")[0]) for line in rest.splitlines() if f"/{TOTAL}" in line]
    assert steps == [*range(saved + 1, TOTAL + 1), *range(1, TOTAL + 1)]
    assert rows_without_speed(tmp_path / "two") == rows_without_speed(tmp_path / "alone")


def prove(folder: str) -> None:
    """What would be too long for a test: one of two processes is killed after a checkpoint, and both started again."""
    folder = pathlib.Path(folder)
    print("two processes, undisturbed:", start(folder / "straight", 2).wait())
    killed = start(folder / "killed", 2)
    killed.until("19/")  # saving step 16 waits for the checkpoint of step 8
    killed.processes[1].kill()
    gone = time.monotonic()
    print(
        "process 1 killed:",
        killed.wait(),
        f"process 0 ends {time.monotonic() - gone:.1f} s later: {killed.lines[0][-1]}",
    )
    again = start(folder / "killed", 2)
    print("both again:", again.wait(), [line for line in again.lines[0] if "resumed" in line])
    same = rows_without_speed(folder / "killed") == rows_without_speed(folder / "straight")
    print("rows of metrics.jsonl alike:", same)
    states = [saved_state(folder / run) for run in ("killed", "straight")]
    print("last checkpoints alike:", all(jax.tree.leaves(jax.tree.map(np.array_equal, *states))))


REDUCE = """
import sys
from maskcl_jax.training import distributed
info = distributed.ProcessInfo(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout=20)
distributed.join(info, {"batch_size": 8, "data": {"path": "häuser"}}, "runs/x")
import jax.numpy as jnp
from jax.experimental import multihost_utils
print(distributed.exchange("é" * info.process_id), flush=True)
with distributed.exit_on_failure():
    while True:
        multihost_utils.process_allgather(jnp.ones(1))
"""


def test_processes_exchange_texts_and_one_that_is_killed_ends_the_others():
    address = f"localhost:{free_port()}"
    pipes = {"env": environment(1), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", REDUCE, address, str(i)], **pipes) for i in range(2)]
    try:
        said = [next(line for line in process.stdout if line.startswith("['")) for process in both]
        assert said == ["['', 'é']\n"] * 2
        both[1].kill()
        error = both[0].communicate(timeout=60)[1].strip().splitlines()[-1]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[0].returncode == 1
    assert error.startswith("error: process 0 of 2 cannot go on")


FAIL = """
import sys
from maskcl_jax.errors import UserError
from maskcl_jax.training import distributed
distributed.join(distributed.ProcessInfo(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout=20), {}, "")
import jax
with distributed.exit_on_failure():
    raise UserError("data.path=x is gone") if jax.process_index() else ValueError("a fault")
"""


def test_a_failure_in_one_process_is_one_line_and_ends_it_at_once():
    address = f"localhost:{free_port()}"
    pipes = {"env": environment(1), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", FAIL, address, str(i)], **pipes) for i in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [1, 2]
    assert "ValueError: a fault" in errors[0]  # a fault of the program keeps its traceback
    assert errors[0].strip().splitlines()[-1].startswith("error: process 0 of 2 cannot go on (a fault)")
    assert errors[1].strip().splitlines()[-1] == "error: process 1 of 2: data.path=x is gone"


JOIN = """
import sys
from maskcl_jax.errors import UserError
from maskcl_jax.training import distributed
address, count, number, size = sys.argv[1], *map(int, sys.argv[2:])
info = distributed.ProcessInfo(address, count, number, initialization_timeout=TIMEOUT)
try:
    distributed.join(info, {"batch_size": size, "data": {"path": "häuser"}}, "runs/x" + "y" * number)
except UserError as error:
    print(error)
"""


def joining(timeout: int, *arguments) -> subprocess.Popen:
    """A process that only joins: address, how many, which, and its config's batch size."""
    child = [sys.executable, "-c", JOIN.replace("TIMEOUT", str(timeout)), *map(str, arguments)]
    return subprocess.Popen(child, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_line(process) -> str:
    """What a process prints last to stdout."""
    return process.communicate(timeout=120)[0].splitlines()[-1]


def test_processes_that_were_started_differently_are_refused_on_all():
    address = f"localhost:{free_port()}"
    both = [joining(60, address, 2 + i, i, 8 + i) for i in range(2)]
    expected = (
        "--num_processes is 3 on process 1, 2 on 0; --workdir is 'runs/xy' on process 1, 'runs/x' on 0; "
        "batch_size is 9 on process 1, 8 on 0: start all processes with the same command"
    )
    assert [last_line(process) for process in both] == [expected] * 2


def test_a_process_that_does_not_arrive_ends_the_others():
    process = joining(2, f"localhost:{free_port()}", 2, 0, 8)
    error = process.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert process.returncode == 1
    assert error.startswith("error: after 2 s not all processes are there (this is number 0 of 2")


def test_differences_name_at_most_three_fields_of_the_first_that_differs():
    starts = [dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 1), {}]
    assert distributed.differences(starts) == [f"{name} is 1 on process 2, 0 on 0" for name in "abc"]
    assert distributed.differences(starts[:2]) == []


@pytest.mark.parametrize(
    ("variables", "cluster"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # in a batch script, outside of srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ],
)
def test_clusters_are_detected(variables, cluster, monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.detect_cluster() == cluster


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coordinator": "host"}, "--coordinator=host has no port"),
        ({"num_processes": 0}, "--num_processes=0 is out of range"),
        ({"num_processes": 2, "process_id": 2}, "--process_id=2 is out of range: use 0 to 1"),
        ({"heartbeat_timeout": 0}, "--heartbeat_timeout=0 is out of range"),
    ],
)
def test_values_that_no_run_has_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        distributed.check(distributed.ProcessInfo(**fields))


if __name__ == "__main__":
    prove(sys.argv[1])
