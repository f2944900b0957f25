"""Ending a loop between two steps when a signal asks for it."""

import signal


class StopSignal:
    """Remembers a SIGINT or SIGTERM, so that the loop can save between two steps; a second one ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignal":
        self.before = {s: signal.signal(s, self.receive) for s in self.SIGNALS}
        return self

    def receive(self, number, frame):
        self.received = signal.Signals(number)
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
