"""Kills tiny runs at random moments (SIGKILL), again and again, and starts them again until they end.

    python tests/campaigns/kills.py [--seed=0] [--count=200]        kills
    python tests/campaigns/kills.py --seed=0 --only=7               run 7 alone

Five methods, images from the host or on the device, saving in the background or not; each process is forked from one
that has only imported the package. Each run is killed five times, at a random moment of its start, behind a random
step, or behind the next checkpoint, where one more may be half written. It must continue from the newest whole
checkpoint (the steps are counted) and end with the arrays and the metrics, bit for bit, of a run that was not killed.
"""

import functools
import hashlib
import json
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))

METHODS = ("ccmim", "cmae", "mocov3", "moco_v2", "maskco")
STEPS, KILLS = 40, 5
LIMIT = 300  # seconds for one process


def imported() -> None:
    """Imports what a run needs, but starts no device: the processes of runs are forked from this one.

    A third of the time of a tiny run would be its imports. `maskcl_jax.main` itself is executed by each process.
    """
    import importlib

    for name in ("training.loop", "training.run_folder", "cli", "data.sources.synthetic", "data.on_device"):
        importlib.import_module(f"maskcl_jax.{name}")
    for name in ("ccmim", "cmae", "mocov3", "mocov2", "maskco"):
        importlib.import_module(f"maskcl_jax.methods.{name}")


def in_child(function, *arguments) -> tuple[int, int]:
    """Calls a function in a process of its own. Returns its id, and where to read what it prints."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            status = function(*arguments) or 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    return pid, reading


def train(words: list[str], saving: str) -> None:
    """`python -m maskcl_jax.main WORDS`. Orbax saves in the background unless told not to: there is no field for it."""
    import orbax.checkpoint as ocp

    if saving == "at once":
        options = functools.partial(ocp.CheckpointManagerOptions, enable_async_checkpointing=False)
        ocp.CheckpointManagerOptions = options
    sys.argv = ["maskcl_jax.main", *words]
    runpy.run_module("maskcl_jax.main", run_name="__main__", alter_sys=True)


class Process:
    """One process of a run, its output line by line."""

    def __init__(self, method: str, where: str, saving: str, every: int, workdir: pathlib.Path):
        from helpers.tiny import colourless, fields_of

        fields = fields_of(method) | colourless(method)
        fields |= {"total_steps": STEPS, "checkpoint.every_epochs": every / 8, "eval.pictures": 0}
        fields |= {"log.every_seconds": 0.0, "data.on_device": where == "device"}
        words = [f"--config={method}:synthetic", *(f"--config.{k}={v}" for k, v in fields.items())]
        self.pid, reading = in_child(train, [*words, f"--workdir={workdir}"], saving)
        self.output = os.fdopen(reading, errors="replace")
        self.status: int | None = None
        self.lines: list[str] = []
        self.step = 0  # the newest that was reported
        self.reported: list[int] = []
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def listen(self) -> None:
        """Collects the output."""
        for line in self.output:
            self.lines.append(line.rstrip())
            if match := re.match(rf"(\d+)/{STEPS} ", line):
                self.step = int(match[1])
                self.reported.append(self.step)

    def kill_after(self, happened: Callable[[], bool], delay: float) -> bool:
        """Kills it `delay` seconds after something has happened. Returns whether it was still running."""
        end = time.monotonic() + LIMIT
        while not happened() and self.poll() is None and time.monotonic() < end:
            time.sleep(0.003)
        time.sleep(delay)
        running = self.poll() is None
        if running:
            os.kill(self.pid, signal.SIGKILL)
        self.end()
        return running

    def end(self) -> int:
        """Waits for its end, at most LIMIT seconds; returns the exit status."""
        end = time.monotonic() + LIMIT
        while self.poll() is None:
            time.sleep(0.01)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
        self.thread.join()
        self.output.close()
        return self.status

    @property
    def resumed_from(self) -> int | None:
        """The step that it said it continues from; None where it did not."""
        said = [re.match(r"resumed from step (\d+)", line) for line in self.lines]
        return next((int(match[1]) for match in said if match), None)


straight: dict[tuple[str, str], tuple[str, list[dict]]] = {}


def newest(workdir: pathlib.Path) -> int:
    """The step of the newest whole checkpoint, 0 for none."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def half_written(workdir: pathlib.Path) -> set[str]:
    """The names of the checkpoints that are not whole, or being removed."""
    return {path.name for path in workdir.glob("checkpoints/*") if not path.name.isdecimal()}


def print_digest(workdir: pathlib.Path) -> None:
    """Prints a digest of every array of the checkpoint of the last step."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(workdir / "checkpoints" / str(STEPS) / "state")
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    digest = hashlib.blake2b()
    for leaf in leaves:
        digest.update(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    print(f"digest of {len(leaves)} arrays: {digest.hexdigest()}", flush=True)


def digest_of(workdir: pathlib.Path) -> str:
    """The line of `print_digest`."""
    pid, reading = in_child(print_digest, workdir)
    with os.fdopen(reading) as output:
        text = output.read()
    os.waitpid(pid, 0)
    return next(line for line in text.splitlines() if line.startswith("digest of "))


def lines_until(workdir: pathlib.Path, step: int) -> list[str]:
    """The rows of metrics.jsonl up to a step, as they stand there."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]


def run_straight(method: str, where: str, folder: pathlib.Path) -> tuple[str, list[dict]]:
    """(digest of the arrays, metrics) of the run that is not killed."""
    from helpers.tiny import rows_without_speed

    if (method, where) not in straight:
        process = Process(method, where, "background", 8, folder / "straight")
        if process.end():
            raise RuntimeError("the straight run failed: " + " ".join(process.lines[-5:]))
        straight[method, where] = digest_of(folder / "straight"), rows_without_speed(folder / "straight")
    return straight[method, where]


def fault(process: Process, workdir: pathlib.Path, before: int, kept: list[str], *, ended: bool) -> str:
    """What is wrong with a process that found a checkpoint of step `before` and the rows `kept`."""
    text = "\n".join(process.lines)
    if "Traceback" in text or "is damaged" in text:
        return f"printed {text[-1500:]}"
    if process.reported:
        if (process.resumed_from or 0) != before:
            return f"resumed from {process.resumed_from}, the newest whole checkpoint was {before}"
        if process.reported[0] != before + 1:
            return f"its first step is {process.reported[0]}, behind a checkpoint of {before}"
        if before and lines_until(workdir, before) != kept:
            return f"the rows up to step {before} are not those that stood there"
    if ended and process.reported != list(range(before + 1, STEPS + 1)):
        return f"reported steps {process.reported} from checkpoint {before}"
    return ""


def attempt(seed: int, index: int, folder: pathlib.Path) -> common.Outcome:
    """One run that is killed KILLS times."""
    rng = np.random.default_rng([seed, index])
    method, where, saving = (
        METHODS[index % 5],
        ("host", "device")[index // 5 % 2],
        ("background", "at once")[index // 10 % 2],
    )
    outcome = common.Outcome(f"{method}, {where}, saved {saving}", "ends as the straight run")
    imported()
    from helpers.tiny import rows_without_speed

    digest, metrics = run_straight(method, where, folder)
    workdir, counts, every = folder / "run", outcome.counts, int(rng.choice([1, 2, 5]))  # saved every so many steps
    for _ in range(KILLS):
        before, earlier = newest(workdir), half_written(workdir)
        kept = lines_until(workdir, before)
        process = Process(method, where, saving, every, workdir)
        event = str(rng.choice(["start", "step", "checkpoint"], p=[0.1, 0.2, 0.7]))
        step, wait = before + int(rng.integers(1, 5)), rng.random() * (3.0 if event == "start" else 0.2)
        happened = {
            "start": lambda: True,
            "step": lambda process=process, step=step: process.step >= step,
            "checkpoint": lambda before=before: newest(workdir) > before,
        }
        running = process.kill_after(happened[event], wait)
        counts["kills"] += running
        place = "before the first step" if not process.reported else "between two checkpoints"
        place = "while a checkpoint was written" if half_written(workdir) - earlier else place
        counts[f"kills {place}"] += running
        counts["processes that resumed"] += bool(process.reported and before)
        counts["steps not computed again"] += before if process.reported else 0
        outcome.failure = fault(process, workdir, before, kept, ended=not running)
        if outcome.failure or not running:
            break
    if not outcome.failure:
        before = newest(workdir)
        kept = lines_until(workdir, before)
        process = Process(method, where, saving, every, workdir)
        status = process.end()
        outcome.failure = fault(process, workdir, before, kept, ended=before < STEPS)
        counts["processes that resumed"] += bool(before)
        counts["steps not computed again"] += before
        if status:
            outcome.failure = f"exit status {status}: " + " ".join(process.lines[-5:])
    if not outcome.failure:
        if digest_of(workdir) != digest:
            outcome.failure = "other arrays than the straight run"
        elif rows_without_speed(workdir) != metrics:
            outcome.failure = "other metrics than the straight run"
    if outcome.failure:
        outcome.result = "failed"
    return outcome


if __name__ == "__main__":
    enough = lambda counts, wanted: counts["kills"] >= wanted  # noqa: E731
    common.run(attempt, __doc__, count=200, limit=1800, until=enough)
