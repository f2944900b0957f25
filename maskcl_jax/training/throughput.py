"""Step metrics one step late, and images per second, MFU and data wait over the steps."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from maskcl_jax.errors import Diverged


class Meter:
    """Fetches metrics one step late, so that the host never waits for the step it has just dispatched."""

    def __init__(self) -> None:
        self.pending: tuple[int, Mapping[str, jax.Array]] | None = None

    def push(self, step: int, values: Mapping[str, jax.Array]) -> tuple[int, dict[str, float]] | None:
        """Stores the metrics of one step and fetches those of the step before.

        Args:
            step: Steps done.
            values: Scalars on the device.

        Returns:
            (step, metrics) of the previous push as floats; None on the first one.

        Raises:
            Diverged: A loss of the previous push is NaN or infinite.
        """
        previous, self.pending = self.pending, (step, values)
        return None if previous is None else fetch(*previous)

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Waits for the newest step; returns its (step, metrics), or None if they were returned already."""
        previous, self.pending = self.pending, None
        return None if previous is None else fetch(*previous)


def fetch(step: int, values: Mapping[str, jax.Array]) -> tuple[int, dict[str, float]]:
    """(step, metrics as floats). Raises Diverged where a metric that is named `loss...` is NaN or infinite."""
    floats = {name: float(value) for name, value in jax.device_get(values).items()}
    for name, value in floats.items():
        if name.startswith("loss") and not math.isfinite(value):
            raise Diverged(
                f"{name} is {value} at step {step}: lower optimizer.base_lr or lengthen optimizer.warmup_epochs, "
                "and train in a new workdir"
            )
    return step, floats


class Throughput:
    """Images per second, without the first step (compilation) and without pauses (evaluation, saving)."""

    def __init__(
        self,
        batch_size: int,
        *,
        flops_per_image: float | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        window: int = 20,
    ) -> None:
        """Starts without measurements.

        Args:
            batch_size: Images per step.
            flops_per_image: FLOPs of the model for one source image; None if unknown.
            peak: FLOP/s of all devices together; None if unknown.
            clock: Seconds.
            cpu_clock: CPU seconds of this process: unlike seconds, they do not depend on what else the machine does.
            window: Steps that the current speed is taken over.
        """
        self.batch_size, self.clock, self.cpu_clock, self.window = batch_size, clock, cpu_clock, window
        self.flops_per_image, self.peak = flops_per_image, peak
        self.times: list[float] = []  # at the end of each step, on a clock that stands still during pauses
        self.cpu_times: list[float] = []  # likewise, of the CPU
        self.waits: list[float] = []  # seconds that each step waited for its data
        self.paused_seconds = self.paused_cpu_seconds = self.waited_seconds = 0.0

    def step(self) -> None:
        """Marks the end of a step."""
        self.times.append(self.clock() - self.paused_seconds)
        self.cpu_times.append(self.cpu_clock() - self.paused_cpu_seconds)
        self.waits.append(self.waited_seconds)
        self.waited_seconds = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time that is spent inside."""
        begin, cpu_begin = self.clock(), self.cpu_clock()
        yield
        self.paused_seconds += self.clock() - begin
        self.paused_cpu_seconds += self.cpu_clock() - cpu_begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time that is spent inside as the next step's wait for its data."""
        begin = self.clock()
        yield
        self.waited_seconds += self.clock() - begin

    def images_per_second(self) -> float:
        """Over the last `window` steps; 0 before two steps are done."""
        return self._speed(self.times[-self.window - 1 :])

    def overall(self) -> float:
        """Images per second over all steps; 0 before two steps are done."""
        return self._speed(self.times)

    def _speed(self, times: list[float]) -> float:
        """Images per second between the first and the last of consecutive times; 0 where nothing was measured."""
        if len(times) < 2 or times[-1] <= times[0]:
            return 0.0
        return (len(times) - 1) * self.batch_size / (times[-1] - times[0])

    def data_wait(self, steps: int | None = None) -> float:
        """Fraction of the time of the last `steps` (default: all) that the loop waited for data."""
        times, waits = self.times, self.waits
        if steps is not None:
            times, waits = times[-steps - 1 :], waits[-steps - 1 :]
        return sum(waits[1:]) / (times[-1] - times[0]) if self._speed(times) else 0.0

    def mfu(self, images_per_second: float) -> float | None:
        """Model FLOPs utilization at a speed, as a fraction of the peak; None if FLOPs, peak or speed are unknown."""
        if not (self.flops_per_image and self.peak and images_per_second):
            return None
        return images_per_second * self.flops_per_image / self.peak

    def scalars(self) -> dict[str, float]:
        """The speed columns of metrics.jsonl, over the last `window` steps; empty before two steps are done."""
        speed = self.images_per_second()
        if not speed:
            return {}
        row = {"images_per_second": speed, "images_per_second_per_device": speed / jax.device_count()}
        used = self.cpu_times[-self.window - 1 :]
        row["cpu_seconds_per_image"] = (used[-1] - used[0]) / ((len(used) - 1) * self.batch_size)
        mfu = self.mfu(speed)
        return row | {"data_wait": self.data_wait(self.window)} | ({} if mfu is None else {"mfu": mfu})

    def eta(self, steps: int) -> float:
        """Seconds that `steps` more steps take at the current speed; 0 while it is unknown."""
        return steps * self.batch_size / (self.images_per_second() or math.inf)
