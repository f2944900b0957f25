"""What a run measures of itself: step metrics, throughput, the live line, metric files, facts of the platform."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
from absl import logging

from maskcl_jax.errors import Diverged

CLEAR = "\r\033[K"  # of a terminal: to the start of the line, and empty it


class Meter:
    """Fetches metrics one step late, so that the host never waits for the step it has just dispatched."""

    def __init__(self):
        self.pending: tuple[int, dict] | None = None

    def push(self, step: int, values: dict) -> tuple[int, dict[str, float]] | None:
        """Takes the device metrics of `step`; returns (step, metrics) of the push before, as floats."""
        before, self.pending = self.pending, (step, values)
        return fetched(before)

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Waits for the newest step and returns its (step, metrics); None where it was returned already."""
        before, self.pending = self.pending, None
        return fetched(before)


def fetched(row):
    """Device metrics as floats. Raises Diverged where a loss is NaN or infinite."""
    if row is None:
        return None
    step, values = row
    values = {name: float(value) for name, value in jax.device_get(values).items()}
    for name, value in values.items():
        if name.startswith("loss") and not math.isfinite(value):
            raise Diverged(
                f"{name} is {value} at step {step}: lower optimizer.base_lr or lengthen optimizer.warmup_epochs, "
                "and start again from an earlier checkpoint or an empty workdir"
            )
    return step, values


class Throughput:
    """Images per second, without the first step (compilation) and without pauses (evaluation, saving).

    flops_per_image, peak: of the model and of all devices together, FLOPs and FLOP/s, for `mfu`; None: not known.
    """

    def __init__(self, batch_size: int, *, flops_per_image=None, peak=None, clock=time.monotonic, window: int = 20):
        self.batch_size, self.clock, self.window = batch_size, clock, window
        self.flops_per_image, self.peak = flops_per_image, peak
        self.times: list[float] = []  # one a step, on a clock that stands still during pauses
        self.waits: list[float] = []  # of each step, for its data
        self.lost = self.waited = 0.0

    def step(self) -> None:
        """Call it after every step."""
        self.times.append(self.clock() - self.lost)
        self.waits.append(self.waited)
        self.waited = 0.0

    @contextlib.contextmanager
    def paused(self):
        """Time spent inside does not count."""
        begin = self.clock()
        yield
        self.lost += self.clock() - begin

    @contextlib.contextmanager
    def waiting(self):
        """Time spent inside is the next step's wait for its data."""
        begin = self.clock()
        yield
        self.waited += self.clock() - begin

    def images_per_second(self) -> float:
        """Over the last steps; 0 before two steps are done."""
        return self.rate(self.times[-self.window - 1 :])

    def overall(self) -> float:
        """Over the whole run."""
        return self.rate(self.times)

    def rate(self, times: list[float]) -> float:
        """Images per second over consecutive step times; 0 where nothing was measured."""
        if len(times) < 2 or times[-1] <= times[0]:
            return 0.0
        return (len(times) - 1) * self.batch_size / (times[-1] - times[0])

    def data_wait(self, steps: int | None = None) -> float:
        """Share of the time of the last steps (default: of all) in which the loop stood still for want of data."""
        times, waits = self.times, self.waits
        if steps is not None:
            times, waits = times[-steps - 1 :], waits[-steps - 1 :]
        return sum(waits[1:]) / (times[-1] - times[0]) if self.rate(times) else 0.0

    def mfu(self, images_per_second: float) -> float | None:
        """Model FLOPs utilisation: the share of the peak that the model's own FLOPs are; None where unknown."""
        if not (self.flops_per_image and self.peak and images_per_second):
            return None
        return images_per_second * self.flops_per_image / self.peak

    def scalars(self) -> dict[str, float]:
        """What metrics.jsonl says of the last steps; empty before two steps are done."""
        rate = self.images_per_second()
        if not rate:
            return {}
        row = {"images_per_second": rate, "images_per_second_per_device": rate / jax.device_count()}
        mfu = self.mfu(rate)
        return row | {"data_wait": self.data_wait(self.window)} | ({} if mfu is None else {"mfu": mfu})

    def eta(self, steps: int) -> float:
        """Seconds that so many more steps will take at the present rate; 0 where it is not known."""
        return steps * self.batch_size / (self.images_per_second() or math.inf)


class LiveLine:
    """One line that renews itself on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, total: int, *, every_steps: int, every_seconds: float, quiet=False, stream=None, clock=None):
        self.total, self.every_steps, self.every_seconds = total, every_steps, every_seconds
        self.quiet, self.stream, self.clock = quiet, stream or sys.stdout, clock or time.monotonic
        self.terminal = self.stream.isatty()
        self.line = ""  # what the terminal shows now
        self.begun, self.shown_at = self.clock(), -math.inf

    def update(self, step: int, values: dict, *, images_per_second: float, eta: float) -> None:
        """Shows the state of the run after `step`. eta: seconds. A rate of 0 is not known yet and not shown."""
        now = self.clock()
        due = step % self.every_steps == 0 and now - self.shown_at >= self.every_seconds
        if self.quiet or not (self.terminal or due or step in (1, self.total)):
            return
        parts = [f"{step}/{self.total}", *(f"{k} {v:.4f}" for k, v in values.items() if k.startswith("loss"))]
        end = f"took {duration(now - self.begun)}" if step == self.total else f"ETA {duration(eta)}"
        parts += [f"{images_per_second:.0f} images/s", end] if images_per_second else []
        text, self.shown_at = "  ".join(parts), now
        if not self.terminal or step == self.total:
            self.line = ""  # this one stays: nothing may be written onto it
            self.say(text)
            return
        self.line = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be cleared
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
    """Scalars to `metrics.jsonl` and TensorBoard, pictures to TensorBoard."""

    def __init__(self, rows, tensorboard):
        self.rows, self.tensorboard = rows, tensorboard

    def write_scalars(self, step: int, values: dict[str, float]) -> None:
        """One row of metrics.jsonl, null for what is not finite (JSON knows no NaN); nothing for no values."""
        if not values:
            return
        row = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self.rows.write(json.dumps({"step": step, **row}) + "\n")
        self.rows.flush()
        if self.tensorboard is not None:
            self.tensorboard.write_scalars(step, values)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8."""
        if self.tensorboard is not None and images:
            self.tensorboard.write_images(step, {name: image[None] for name, image in images.items()})

    def close(self) -> None:
        """Flushes and closes the files."""
        self.rows.close()
        if self.tensorboard is not None:
            self.tensorboard.close()


def create_writers(workdir: str, *, resume_step: int = 0) -> Writers:
    """The metric files of a run, written by the first process alone, without the rows of a lost attempt."""
    if jax.process_index() != 0:
        return Writers(open(os.devnull, "w"), None)
    path = pathlib.Path(workdir) / "metrics.jsonl"
    drop_rows_after(path, resume_step or -1)  # 0: nothing was restored, the run writes its row of step 0 again
    return Writers(path.open("a"), tensorboard_writer(workdir))


def drop_rows_after(path: pathlib.Path, step: int) -> None:
    """Keeps the rows up to `step`; a last row cut short by a kill goes too."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text("".join(kept))
    os.replace(beside, path)


def tensorboard_writer(folder: str):
    """clu's TensorBoard writer, or None with one line in the log where TensorFlow or clu is missing."""
    try:
        import tensorflow as tf
        from clu.metric_writers import SummaryWriter
    except ImportError as error:
        logging.warning("no TensorBoard files, only metrics.jsonl: %s", error)
        return None
    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take the memory of the one that JAX is using
    return SummaryWriter(folder)


def parameter_overview(params) -> str:
    """clu's table of parameters, or their number where clu is missing."""
    try:
        from clu.parameter_overview import get_parameter_overview
    except ImportError:
        return f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters"
    return get_parameter_overview(params, include_stats=False)


def describe_platform() -> str:
    """`cpu, 2 devices (cpu), jax 0.10.2`."""
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    plural = "s" if len(devices) > 1 else ""
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{jax.default_backend()}, {len(devices)} device{plural} ({kinds}){processes}, jax {jax.__version__}"


def memory_in_use() -> int | None:
    """Bytes at the peak on the fullest device of this process; None where the backend does not count (CPU)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((peak for peak in peaks if peak is not None), default=None)


def accelerators_present(devices: pathlib.Path = pathlib.Path("/dev")) -> list[str]:
    """Accelerators that this machine shows, whether or not JAX can use them: device files, else nvidia-smi's list."""
    patterns = ["nvidia[0-9]*", "accel[0-9]*", "kfd"]
    if any(name in os.environ for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")):
        patterns.append("vfio/[0-9]*")  # any device passed through looks so; only on a TPU machine is it one
    found = sorted(str(path) for pattern in patterns for path in devices.glob(pattern))
    if not found and (tool := shutil.which("nvidia-smi")):  # under WSL a GPU has no /dev/nvidia*
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
            found = [line.split(" (UUID")[0] for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return found


def accelerator_fallback(present=accelerators_present) -> str | None:
    """A warning where JAX runs on the CPU though the machine has an accelerator and nobody asked for the CPU."""
    asked = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    if jax.default_backend() != "cpu" or asked or not (found := present()):
        return None
    return (
        f"WARNING: JAX FELL BACK TO THE CPU, though this machine has {', '.join(found)}. Install JAX for it: "
        "pip install -e '.[cuda]' or pip install -e '.[tpu]'. JAX_PLATFORMS=cpu silences this."
    )


def summary_table(rows: dict[str, str]) -> str:
    """Two aligned columns between rules."""
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {text}" for name, text in rows.items()]
    rule = "-" * min(max(map(len, lines)), 100)
    return "\n".join([rule, *lines, rule])
