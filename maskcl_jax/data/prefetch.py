"""Batches made by a background thread while the accelerator works on the ones before."""

import queue
import threading
from collections.abc import Iterator

_END = object()


class Prefetcher:
    """An iterator over `batches`, kept up to `depth` batches ahead; an error appears where it is iterated.

    Call `close()` (or use it as a context manager) when done before the end: it stops the thread.
    """

    def __init__(self, batches: Iterator, depth: int = 2):
        self._queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(batches,), name="data", daemon=True)
        self._thread.start()

    def _work(self, batches: Iterator) -> None:
        try:
            for batch in batches:
                if not self._put((batch, None)):
                    break
            else:
                self._put((_END, None))
        except BaseException as error:
            self._put((_END, error))
        finally:
            if hasattr(batches, "close"):
                batches.close()

    def _put(self, item) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        if self._closed.is_set():
            raise StopIteration
        batch, error = self._queue.get()
        if batch is _END:
            self._closed.set()
            if error is not None:
                raise error
            raise StopIteration
        return batch

    def close(self) -> None:
        """Stops the thread and drops what it had ready."""
        self._closed.set()
        self._thread.join(timeout=10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
