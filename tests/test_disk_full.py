"""A full disk is one line, and the same command goes on when there is room."""

import errno
import functools
import json
import pathlib
import shlex
import shutil
import subprocess

import orbax.checkpoint as ocp
import pytest
from helpers.processes import arguments_of, command, environment
from helpers.tiny import fields_of, quick, rows

from maskcl_jax import cli
from maskcl_jax.errors import disk_full_line
from maskcl_jax.training import logging, loop
from maskcl_jax.training.checkpoint import Checkpoints

IN_A_NAMESPACE = ["unshare", "--map-root-user", "--mount"]  # a file system of our own, without rights
MOUNTS = "mkdir {0} && mount -t tmpfs -o size=1m tmpfs {0}"


def can_mount(folder) -> bool:
    """Whether this machine lets us mount a small file system."""
    if shutil.which("unshare") is None:
        return False
    script = [*IN_A_NAMESPACE, "sh", "-c", MOUNTS.format(shlex.quote(str(folder / "try")))]
    return subprocess.run(script, capture_output=True, check=False).returncode == 0


SCRIPT = """
mkdir {disk} && mount -t tmpfs -o size=3m tmpfs {disk} || exit 99
{train} 2> {disk}.errors
echo "status $?"
ls {disk}/run/checkpoints | grep -v tmp | tail -1
mount -o remount,size=100m {disk}
{train}
echo "status $?"
cat {disk}/run/metrics.jsonl >&3
"""


def test_a_disk_that_checkpoints_fill_is_one_line_and_the_same_command_goes_on(tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("this machine does not let users mount a file system (unshare --mount)")
    disk, total = tmp_path / "disk", 12  # six checkpoints fill it
    fields = {"total_steps": total, "eval.pictures": 0, "log.every_seconds": 0.0, "checkpoint.keep_last": 100}
    fields |= {"checkpoint.every_epochs": 1 / 8, "eval.every_epochs": 0.0}
    train = shlex.join(command(*arguments_of("mae", disk / "run", fields_of("mae") | fields)))
    script = SCRIPT.format(disk=disk, train=train)
    with (tmp_path / "rows").open("w") as rows:
        done = subprocess.run(
            [*IN_A_NAMESPACE, "bash", "-c", f"exec 3>&{rows.fileno()}\n{script}"],
            env=environment(1),
            pass_fds=[rows.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
    errors = (tmp_path / "disk.errors").read_text()
    assert errors.startswith("error: the disk is full") and errors.count("\n") == 1, errors
    first, after = done.stdout.split("status 1\n")
    assert f"{total}/{total}" not in first
    newest, resumed = after.splitlines()[0], [line for line in after.splitlines() if line.startswith("resumed")]
    assert resumed == [f"resumed from step {newest}"]
    assert after.endswith("status 0\n")
    steps = [row["step"] for row in map(json.loads, (tmp_path / "rows").read_text().splitlines()) if "loss" in row]
    assert steps == list(range(1, total + 1))


FULL = "No space left on device"


def full_metrics(monkeypatch, *, at: int):
    """The disk is full when a row of metrics is written, and still when the file is closed."""
    write = logging.Writers.write_scalars

    def fails(self, step, values):
        if step == at:
            self.rows.close()
            self.rows = pathlib.Path("/dev/full").open("a")  # noqa: SIM115 (the run closes it)
        write(self, step, values)

    monkeypatch.setattr(logging.Writers, "write_scalars", fails)


def full_checkpoint(monkeypatch):
    """The disk is full when TensorStore's second checkpoint is completed, in Orbax's thread."""
    finalize, finished = ocp.StandardCheckpointHandler.finalize, []

    def fails(self, directory):
        finished.append(1)
        if len(finished) == 2:
            raise ValueError(f'RESOURCE_EXHAUSTED: Failed writing: "/disk/d": Failed to write: {FULL} [source]')
        finalize(self, directory)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", fails)


FILL = {
    "metrics before the first checkpoint": (functools.partial(full_metrics, at=1), None),
    "metrics": (functools.partial(full_metrics, at=5), 4),
    "checkpoint": (full_checkpoint, 2),
}


@pytest.mark.parametrize(("fill", "newest"), FILL.values(), ids=list(FILL))
def test_a_write_that_finds_the_disk_full_is_one_line_wherever_the_tests_run(
    fill, newest, tmp_path, monkeypatch, capsys
):
    config = quick("mae", **{"checkpoint.every_epochs": 2 / 8, "eval.pictures": 0})
    with monkeypatch.context() as full, pytest.raises(SystemExit) as ended, cli.one_line_errors():
        fill(full)
        loop.train(config, str(tmp_path))
    assert ended.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: the disk is full")
    assert Checkpoints(tmp_path).latest() == newest
    loop.train(config, str(tmp_path))
    assert (f"resumed from step {newest}" in capsys.readouterr().out) == (newest is not None)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3, 4, 5, 6]


def raised(error, cause=None) -> Exception:
    """An error as it is caught."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_which_errors_mean_a_full_disk():
    assert "/a/b cannot be written" in disk_full_line(OSError(errno.ENOSPC, "No space left on device", "/a/b"))
    tensorstore = ValueError('RESOURCE_EXHAUSTED: Failed writing: "/c/d": Failed to write: No space left on device [x]')
    assert "/c/d cannot be written" in disk_full_line(raised(RuntimeError("not saved"), tensorstore))
    assert disk_full_line(OSError(errno.EDQUOT, "Disk quota exceeded")).startswith("the disk is full: free some space")
    assert disk_full_line(OSError(errno.EACCES, "Permission denied", "/a")) is None
    assert disk_full_line(ValueError("RESOURCE_EXHAUSTED: out of memory")) is None
    assert disk_full_line(None) is None
