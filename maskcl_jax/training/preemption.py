"""The signal that ends a run early: Ctrl-C, and what a machine gets that is about to be taken away."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Remembers a SIGINT or SIGTERM, so that the loop can save between two steps, on all hosts after the same.

    Alone, the loop stops after the step that is running, and a second signal ends the process at once. Of several
    processes each has its own signals, and they may be some steps apart: JAX's pre-emption service catches SIGTERM on
    any of them and names a step that none has passed (`reached_preemption_sync_point`); SIGINT is handed on to it.
    """

    def __init__(self):
        self.alone = jax.process_count() == 1
        self.signal = signal.SIGTERM
        self.received = False

    def __enter__(self) -> "StopSignal":
        caught = (signal.SIGINT, signal.SIGTERM) if self.alone else (signal.SIGINT,)
        self.before = {number: signal.signal(number, self.receive) for number in caught}
        return self

    def receive(self, number, frame):
        """The handler."""
        self.__exit__()
        if self.alone:
            self.signal, self.received = signal.Signals(number), True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def due(self, step: int) -> bool:
        """Whether the run shall save and stop after `step`. All processes must ask after every step."""
        return self.received if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
