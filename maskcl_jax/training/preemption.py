"""The signals that end a run early: Ctrl-C, and the SIGTERM that announces a preemption."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Remembers a SIGINT or SIGTERM, so that the loop can save between two steps, after the same one on all hosts.

    A single process stops after the step that is running, and a second signal ends it at once. Of several processes
    each receives its own signals, and they may be some steps apart: JAX's preemption service catches SIGTERM on any of
    them and names a step that none has passed (`reached_preemption_sync_point`); SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self.single = jax.process_count() == 1
        self.signal = signal.SIGTERM
        self.received = False

    def __enter__(self) -> "StopSignal":
        caught = (signal.SIGINT, signal.SIGTERM) if self.single else (signal.SIGINT,)
        self.previous = {number: signal.signal(number, self.receive) for number in caught}
        return self

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.__exit__()
        if self.single:
            self.signal, self.received = signal.Signals(number), True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def due(self, step: int) -> bool:
        """Whether the run must save and stop after `step`. All processes must ask after every step."""
        return self.received if self.single else multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
