"""SIGTERM and Ctrl-C: the step that runs is saved, and the same command takes the remaining steps only."""

import os
import signal
import threading

from helpers.processes import Processes, arguments_of
from helpers.tiny import fields_of, rows_without_speed, tiny

from maskcl_jax.training import loop
from maskcl_jax.training.distributed import StopSignal

TOTAL = 300
FIELDS = {"total_steps": TOTAL, "eval.pictures": 0, "log.every_seconds": 0.0, "checkpoint.every_epochs": 0.0}


def printed_steps(run: Processes) -> list[int]:
    """The steps that a run reports, in order."""
    return [int(line.partition("/")[0]) for line in run.lines[0] if f"/{TOTAL}  " in line]


def stop(arguments: list[str], number: signal.Signals, *, after: int = 0) -> int:
    """Starts a run, or the rest of it, and sends it a signal; returns the step that it saved."""
    run = Processes(arguments)
    run.until(f"{after + 5}/")
    run.processes[0].send_signal(number)
    assert run.wait() == [128 + number], run.text()
    assert (f"resumed from step {after}" in run.lines[0]) == (after > 0)
    saved = printed_steps(run)[-1]
    assert printed_steps(run) == list(range(after + 1, saved + 1))
    assert after + 5 <= saved < TOTAL
    assert run.lines[0][-1].startswith(f"stopped by {number.name}: step {saved} is saved")
    return saved


def test_after_sigterm_and_ctrl_c_the_same_command_takes_the_remaining_steps(tmp_path):
    arguments = arguments_of("mae", tmp_path / "run", fields_of("mae") | FIELDS | {"log.report": True})
    terminated = stop(arguments, signal.SIGTERM)
    assert terminated < TOTAL - 100  # else this machine is too slow for the second signal
    interrupted = stop(arguments, signal.SIGINT, after=terminated)
    assert not (tmp_path / "run" / "report.html").exists()
    rest = Processes(arguments)
    assert rest.wait() == [0], rest.text()
    assert f"resumed from step {interrupted}" in rest.lines[0]
    assert printed_steps(rest) == list(range(interrupted + 1, TOTAL + 1))
    assert rest.lines[0][-1].startswith(f"report: {tmp_path}/run/report.html (")
    assert (tmp_path / "run" / "report.html").exists()

    loop.train(tiny("mae", **FIELDS), str(tmp_path / "straight"))
    assert rows_without_speed(tmp_path / "run") == rows_without_speed(tmp_path / "straight")


def test_the_first_signal_is_remembered_and_the_second_ends_the_process():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("second"))
    try:
        with StopSignal() as stop:
            assert not stop.due(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.due(2)
            assert stop.signal == signal.SIGTERM
            assert received == []
            os.kill(os.getpid(), signal.SIGTERM)  # the handler of before
            assert received == ["second"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_handlers_of_before_are_back_afterwards():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_run_in_another_thread_leaves_signals_alone():
    """A web application's, for instance: Python lets only the main thread catch signals."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def run():
        with StopSignal() as stop:
            seen.append(stop.due(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGINT) is before
