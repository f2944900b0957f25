"""What a run prints and records: the live line, metrics.jsonl and TensorBoard files, tables."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from clu.parameter_overview import count_parameters

from maskcl_jax.training import throughput, trackers

CLEAR = "\r\033[K"  # terminal code: back to the start of the line, and erase it


class LiveLine:
    """One line that is redrawn on a terminal; elsewhere a plain line every few seconds."""

    def __init__(
        self,
        total: int,
        *,
        every_steps: int,
        every_seconds: float,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prints nothing yet.

        Args:
            total: Steps of the run.
            every_steps: Where the stream is no terminal, only multiples of it are printed,
            every_seconds: and no more often than this.
            quiet: Prints nothing at all, for processes other than the first.
            stream: Default: stdout.
            clock: Seconds.
        """
        self.total, self.every_steps, self.every_seconds = total, every_steps, every_seconds
        self.quiet, self.stream, self.clock = quiet, stream or sys.stdout, clock
        self.terminal = self.stream.isatty()
        self.line = ""  # what the terminal shows now
        self.begun, self.shown_at = self.clock(), -math.inf

    def update(self, step: int, values: Mapping[str, float], *, images_per_second: float, eta: float) -> None:
        """Shows the state of the run after `step`.

        Args:
            step: Steps done.
            values: Metrics; those whose names begin with `loss` are shown.
            images_per_second: 0 while it is unknown: then neither it nor the ETA is shown.
            eta: Seconds to the end of the run.
        """
        now = self.clock()
        due = step % self.every_steps == 0 and now - self.shown_at >= self.every_seconds
        if self.quiet or not (self.terminal or due or step in (1, self.total)):
            return
        parts = [f"{step}/{self.total}", *(f"{k} {v:.4f}" for k, v in values.items() if k.startswith("loss"))]
        end = f"took {duration(now - self.begun)}" if step == self.total else f"ETA {duration(eta)}"
        parts += [f"{images_per_second:.0f} images/s", end] if images_per_second else []
        text, self.shown_at = "  ".join(parts), now
        if not self.terminal or step == self.total:
            self.line = ""  # the last line stays: nothing may be written over it
            self.say(text)
            return
        self.line = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be erased
        self.stream.write(f"{CLEAR}{self.line}")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Prints above the live line."""
        if not self.quiet:
            self.stream.write(f"{CLEAR if self.terminal else ''}{text}\n{self.line}")
            self.stream.flush()


def duration(seconds: float) -> str:
    """75.0 -> "1m15s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


class Writers:
    """Writes scalars to metrics.jsonl, and scalars and images to the writers of `log.to`. Only process 0 writes."""

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        resume_step: int = 0,
        to: Sequence[str] = (trackers.TENSORBOARD,),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the files of a run, and drops the rows that a run wrote after the checkpoint it resumes from.

        Args:
            workdir: The run's folder.
            resume_step: Step of that checkpoint; 0 for a run from the start, which writes its row of step 0 again.
            to: `config.log.to`, see `trackers`.
            config: Of the run, flat; shown beside the metrics.

        Raises:
            UserError: One of `to` cannot start.
        """
        self.rows: TextIO | None = None
        self.writers: list[trackers.Writer] = []
        if jax.process_index() != 0:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        drop_rows_after(path, resume_step or -1)
        self.rows, self.writers = path.open("a"), trackers.open_writers(to, workdir, config or {})

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row, with null for what is not finite (JSON has no NaN); nothing for no values."""
        if self.rows is None or not values:
            return
        row = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self.rows.write(json.dumps({"step": step, **row}) + "\n")
        self.rows.flush()
        for writer in self.writers:
            writer.write_scalars(step, values)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes one (H, W, 3) uint8 image per name; nothing for no images."""
        for writer in self.writers if images else []:
            writer.write_images(step, {name: image[None] for name, image in images.items()})

    def close(self) -> None:
        """Flushes and closes the files."""
        if self.rows is not None:
            self.rows.close()
        for writer in self.writers:
            writer.close()


class Recorder:
    """Shows and writes the metrics of a run, those of a step one step late."""

    def __init__(self, live: LiveLine, writers: Writers, rate: throughput.Throughput, *, every_steps: int) -> None:
        """Records nothing yet.

        Args:
            live: Shows the metrics of every step.
            writers: Write them every few steps.
            rate: Of this process's steps.
            every_steps: Steps between rows in the files; the first and the last step have one, too.
        """
        self.live, self.writers, self.rate, self.every_steps = live, writers, rate, every_steps
        self.meter = throughput.Meter()

    def step(self, step: int, values: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step, still on the device, and records those of the step before.

        Args:
            step: Steps done.
            values: Scalars on the device.

        Raises:
            Diverged: A loss of the step before is NaN or infinite.
        """
        self.record(self.meter.push(step, values))

    def flush(self) -> None:
        """Waits for the newest step and records its metrics. Raises Diverged as `step` does."""
        self.record(self.meter.flush())

    def record(self, fetched: tuple[int, Mapping[str, float]] | None) -> None:
        """Shows (step, metrics) in the live line, and writes them to the files every few steps."""
        if fetched is None:
            return
        step, values = fetched
        total = self.live.total
        speed, eta = self.rate.images_per_second(), self.rate.eta(total - step)
        self.live.update(step, values, images_per_second=speed, eta=eta)
        if step % self.every_steps == 0 or step in (1, total):
            self.writers.write_scalars(step, {**values, **self.rate.scalars()})

    def evaluation(self, step: int, scalars: Mapping[str, float], figures: Mapping[str, np.ndarray]) -> None:
        """Writes what `Monitor.evaluate` returns to the files, and the scalars to a line."""
        self.writers.write_scalars(step, scalars)
        self.writers.write_images(step, figures)
        if scalars:
            self.live.say(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in scalars.items()))


def drop_rows_after(path: pathlib.Path, step: int) -> None:
    """Keeps the rows of metrics.jsonl up to `step`; a last row that a kill truncated is dropped too."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def parameter_overview(params: Any) -> str:
    """How many parameters there are, in all and in each network: "12 parameters: encoder 10, decoder 2"."""
    counts = {name: count_parameters({name: part}) for name, part in params.items()}
    return f"{sum(counts.values()):,} parameters: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())


def summary_table(rows: Mapping[str, str]) -> str:
    """Name and text in two aligned columns between rules."""
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {text}" for name, text in rows.items()]
    rule = "-" * min(max(map(len, lines)), 100)
    return "\n".join([rule, *lines, rule])
