"""Runs the pieces of a study one after the other, each in a process of its own, until all are done or time is up."""

import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

from maskcl_jax.errors import UserError
from maskcl_jax.study import outcomes, subset
from maskcl_jax.study.pieces import Piece
from maskcl_jax.study.results import Results
from maskcl_jax.training import run_folder

PYTHON = (sys.executable, "-m")  # what starts a command of the package
# Has Linux send SIGTERM to the command when the study dies: a killed study leaves no run behind.
LAUNCH = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
END_WITH_PARENT = (sys.executable, "-c", LAUNCH) if sys.platform == "linux" else ()
GRACE = 300.0  # seconds that a stopped run gets to save itself
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)


class Stopped(Exception):
    """A signal came, or the time is up; what was running has saved itself."""


class Runner:
    """Runs pieces in one folder.

    Args:
        workdir: Of the study; holds runs/, data/, logs/, costs/ and results.json.
        data: The folder of --data.
        hours: After which the study stops; 0: never.
        results: Where results go.
    """

    def __init__(self, workdir: pathlib.Path, *, data: str, hours: float, results: Results):
        self.workdir, self.data, self.results = workdir.absolute(), data, results
        self.deadline = time.monotonic() + 3600 * hours if hours else float("inf")
        self.failed: dict[str, str] = {}  # a piece's command -> why
        self.signal: signal.Signals | None = None

    def run(self, pieces: list[Piece]) -> int:
        """Runs what is missing.

        Returns:
            The exit status: 0 done or out of time, 1 a piece failed, 128 + the signal that stopped it.

        Raises:
            UserError: The images are not there.
        """
        missing = [piece for piece in pieces if not self.results.has(piece)]
        print(
            f"{self.results.name}, scale {self.results.scale}: {len(missing)} of {len(pieces)} evaluations are missing"
        )
        if missing and self.results.study.data:
            subset.prepare(self.results.study.data, self.data, self.workdir / "data")
        previous = {number: signal.signal(number, self.receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for number, piece in enumerate(missing):
                for part in (piece.needs, piece):
                    if part is not None:
                        self.work(part, f"{number + 1}/{len(missing)}")
        except Stopped:
            why = self.signal.name if self.signal else "--hours"
            print(f"stopped by {why}: the same command goes on here", flush=True)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.results.write()
        if self.signal:
            return 128 + self.signal
        return 1 if self.failed else 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.signal = signal.Signals(number)

    def work(self, piece: Piece, place: str) -> None:
        """Runs one piece unless it is done, or what it needs has failed; its results are recorded."""
        if piece.command in self.failed or (piece.needs and piece.needs.command in self.failed):
            return
        if piece.kind == "train" and self.cost(piece)["finished"]:
            return
        print(f"{place} {piece.entry}, seed {piece.seed}: {piece.kind} {piece.words[2]}", flush=True)
        status = self.execute(piece)
        if status in STOPPED and self.stopping():
            raise Stopped
        if status:
            self.failed[piece.command] = self.last_line(piece)
            print(f"failed: {piece.command}: {self.failed[piece.command]}", flush=True)
            return
        cost = self.cost(piece)
        if piece.kind == "train":
            row = outcomes.run_row(piece, self.workdir / piece.run, cost)
            self.results.add([], [] if self.results.has(piece) else [row])
        else:
            rows = outcomes.figure_rows(piece, self.workdir / piece.run, self.words(piece))
            self.results.add(rows, [])
            print("  " + ", ".join(f"{row['figure']} {row['value']:.1f}" for row in rows), flush=True)

    def execute(self, piece: Piece) -> int:
        """Runs a piece to its end, or stops it when the study stops; returns its exit status.

        Raises:
            Stopped: Before it starts.
        """
        if self.stopping():
            raise Stopped
        log = self.workdir / "logs" / f"{pathlib.Path(piece.run).name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self.workdir / "compiled")} | os.environ
        started, used = time.monotonic(), cpu_seconds()
        with log.open("ab") as stream:
            words = [*END_WITH_PARENT, *PYTHON, *self.words(piece)]
            stream.write(f"\n$ {piece.command}\n".encode())
            stream.flush()
            # A session of its own: Ctrl-C reaches this process only, which then stops it once.
            process = subprocess.Popen(
                words,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            status = self.wait(process)
        self.note_cost(piece, time.monotonic() - started, cpu_seconds() - used, finished=status == 0)
        return status

    def wait(self, process: subprocess.Popen) -> int:
        """Waits for a process, and stops it when the study stops; returns its exit status."""
        while not self.stopping():
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
        process.terminate()
        try:
            return process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return -signal.SIGTERM

    def stopping(self) -> bool:
        """Whether the study must stop."""
        return self.signal is not None or time.monotonic() >= self.deadline

    def words(self, piece: Piece) -> list[str]:
        """The piece's command with the folders of this machine."""
        folders = {"WORKDIR": str(self.workdir), "DATA": str(pathlib.Path(self.data).absolute())}
        if not self.data and any(re.search(r"\bDATA/", word) for word in piece.words):
            raise UserError(f"entry {piece.entry!r} needs a data set: give its folder with --data=DIR")
        return [re.sub(r"\b(WORKDIR|DATA)(?=/)", lambda found: folders[found[1]], word) for word in piece.words]

    def last_line(self, piece: Piece) -> str:
        """The last line that a piece printed."""
        lines = (self.workdir / "logs" / f"{pathlib.Path(piece.run).name}.log").read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")

    def cost(self, piece: Piece) -> dict[str, Any]:
        """What a piece has cost so far on this machine, over all its attempts."""
        path = self.workdir / "costs" / f"{piece.key}.json"
        return json.loads(path.read_text()) if path.exists() else {"seconds": 0, "cpu_seconds": 0, "finished": False}

    def note_cost(self, piece: Piece, seconds: float, cpu: float, *, finished: bool) -> None:
        """Adds the cost of an attempt."""
        before = self.cost(piece)
        after = {"seconds": before["seconds"] + seconds, "cpu_seconds": before["cpu_seconds"] + cpu}
        path = self.workdir / "costs" / f"{piece.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(path, json.dumps(after | {"finished": finished}))


def cpu_seconds() -> float:
    """CPU time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
