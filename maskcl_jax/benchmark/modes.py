"""What the benchmark times: the step, the host's input, both together, the frozen encoder."""

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax.benchmark import jpegs
from maskcl_jax.data import on_device, pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.methods import Method
from maskcl_jax.methods import create as create_method
from maskcl_jax.performance import devices
from maskcl_jax.performance.compiled import compiler_flops, peak_bytes
from maskcl_jax.training import loop, memory, sharding
from maskcl_jax.training.logging import summary_table
from maskcl_jax.training.step import Program
from maskcl_jax.training.throughput import Throughput

MAX_DRAWN = 64  # different images of a synthetic batch; a larger batch repeats them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timer:
    """Times steps.

    Attributes:
        steps: Steps that are timed,
        warmup: after so many that are not.
        profile: A folder for a trace, or "".
    """

    steps: int = 20
    warmup: int = 3
    profile: str = ""

    def device(self, one: Callable[[], Any]) -> np.ndarray:
        """Seconds between the results of consecutive calls of `one`, which returns device arrays.

        As in training, the host dispatches one step ahead.
        """
        for _ in range(self.warmup):
            before = jax.block_until_ready(one())
        if self.profile:  # of steps that are not timed: tracing slows them
            with jax.profiler.trace(self.profile):
                before = jax.block_until_ready([one() for _ in range(3)])[-1]
        times = []
        for _ in range(self.steps + 1):
            after = one()
            jax.block_until_ready(before)
            times.append(time.perf_counter())
            before = after
        jax.block_until_ready(before)
        return np.diff(times)

    def host(self, one: Callable[[], Any]) -> tuple[np.ndarray, float]:
        """(seconds of each call of `one`, CPU seconds of all calls together)."""
        # Batches that were made in advance would cost nothing: the queue is emptied first.
        for _ in range(self.warmup + 3):
            one()
        times, cpu = [time.perf_counter()], time.process_time()
        for _ in range(self.steps):
            one()
            times.append(time.perf_counter())
        return np.diff(times), time.process_time() - cpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one measurement. None: unknown, or not part of the mode.

    Attributes:
        mode: A key of MODES.
        method: `config.method.name`.
        preset: `config.preset`.
        batch_size: Images per step.
        dtype: `config.dtype`.
        platform: `devices.describe_platform`.
        date: Of the measurement.
        steps: Steps that were timed.
        seconds_a_step: Median of their times.
        seconds_low: A tenth of the steps took less,
        seconds_high: and a tenth took more.
        images_per_second: By the mean time.
        devices: JAX devices.
        model_flops_a_step: FLOPs of the model on all devices.
        compiler_flops_a_step: FLOPs on one device by XLA's count.
        mfu: Model FLOPs utilization.
        peak_bytes: Memory on the fullest device.
        compile_seconds: Time of the compilation.
        data_wait: Fraction of the time that a step waits for data.
        images_per_cpu_second: Images per CPU second of this process.
    """

    mode: str
    method: str
    preset: str
    batch_size: int
    dtype: str
    platform: str
    date: str
    steps: int
    seconds_a_step: float
    seconds_low: float
    seconds_high: float
    images_per_second: float
    devices: int
    model_flops_a_step: float | None = None
    compiler_flops_a_step: float | None = None
    mfu: float | None = None
    peak_bytes: int | None = None
    compile_seconds: float | None = None
    data_wait: float | None = None
    images_per_cpu_second: float | None = None

    @property
    def images_per_second_per_device(self) -> float:
        """Speed of one device."""
        return self.images_per_second / self.devices


# --- The modes ------------------------------------------------------------------------------------------------


def step(config: Any, timer: Timer) -> Report:
    """The training step alone, on a given batch of views, also with data.on_device."""
    program = program_of(config, per_epoch=1000)
    compiled, facts = compile_step(program)
    state, batch = program.new_state(), program.put(synthetic_batch(config, program.method))

    def one() -> Any:
        nonlocal state
        state, values = compiled(state, batch)
        return values

    times = timer.device(one)
    return create_report(config, "step", times, **facts | usage(facts, times))


def host(config: Any, timer: Timer) -> Report:
    """The input pipeline alone: this process's part of every batch."""
    program, source = program_of(config, per_epoch=1000), open_source(config.data)
    with contextlib.closing(loop.open_batches(source, program, 0)) as batches:
        times, cpu = timer.host(lambda: next(batches))
    images = timer.steps * config.batch_size // jax.process_count()
    return create_report(config, "input", times, images_per_cpu_second=images / cpu)


def end_to_end(config: Any, timer: Timer) -> Report:
    """The training loop without evaluation and checkpoints."""
    source = open_source(config.data)
    program = program_of(config, pipeline.steps_per_epoch(source, config.batch_size), source)
    compiled, facts = compile_step(program)
    state, throughput = program.new_state(), Throughput(config.batch_size)
    with contextlib.closing(loop.open_batches(source, program, 0)) as batches:

        def one() -> Any:
            nonlocal state
            with throughput.waiting():
                batch = next(batches)
            state, values = compiled(state, program.put(batch))
            throughput.step()
            return values

        times = timer.device(one)
    facts |= usage(facts, times)
    return create_report(config, "end_to_end", times, data_wait=throughput.data_wait(timer.steps), **facts)


def evaluate(config: Any, timer: Timer) -> Report:
    """The frozen encoder over the training images, one batch per step."""
    source = open_source(config.data)
    program = program_of(config, pipeline.steps_per_epoch(source, config.batch_size))
    mesh, method, state, size = program.mesh, program.method, program.new_state(), config.eval.batch_size
    sharding.check_batch(size, mesh, field="eval.batch_size")
    features = jax.jit(
        lambda state, images: method.features(state.params, state.model_state, images, kind=config.eval.feature),
        out_shardings=sharding.replicated(mesh),
    )
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    throughput = Throughput(size)

    def read() -> Generator[dict[str, np.ndarray], None, None]:
        while True:  # a small data set is read again and again
            yield from pipeline.eval_batches(source, "train", data_config=config.data, batch_size=size, **part)

    with contextlib.closing(read()) as batches:

        def one() -> Any:
            with throughput.waiting():
                batch = next(batches)
            images = sharding.put({"image": batch["image"]}, mesh)["image"]
            throughput.step()
            return features(state, images)

        times = timer.device(one)
    return create_report(config, "evaluate", times, batch_size=size, data_wait=throughput.data_wait(timer.steps))


def with_jpegs(config: Any, folder: str, count: int) -> Any:
    """Writes JPEGs into a folder and returns the config with them as its data.

    Raises:
        UserError: `count` is less than a batch.
    """
    if count < config.batch_size:
        raise UserError(f"--jpegs={count} is less than batch_size={config.batch_size}: make at least one batch")
    jpegs.write(folder, count)
    config = config.copy_and_resolve_references()
    config.data.source, config.data.path, config.data.test_path = "folder", folder, ""
    return config


# --- What they share ------------------------------------------------------------------------------------------


def program_of(config: Any, per_epoch: int, source: Any = None) -> Program:
    """The step on the devices of this machine; with data.on_device, and given the source, on images that lie there."""
    mesh, images = sharding.create_mesh(config.mesh), None
    config = memory.with_remat(config, mesh)
    method = create_method(config, mesh)
    sharding.check_batch(config.batch_size, mesh, parts=config_lib.split_fields(config))
    if source is not None and config.data.on_device:
        images = on_device.place(
            source,
            method.views,
            channels=config.data.channels,
            devices=mesh.size,
            sharding=sharding.batch_sharding(mesh),
        )
    return Program.from_config(config, mesh, method, per_epoch, images)


def compile_step(program: Program) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """(the compiled step, the fields of `Report` that follow from it)."""
    begin = time.monotonic()
    compiled = program.compile()
    return compiled, {
        "compile_seconds": time.monotonic() - begin,
        "compiler_flops_a_step": compiler_flops(compiled),
        "model_flops_a_step": program.model_flops(),
        "peak_bytes": peak_bytes(compiled),
    }


def synthetic_batch(config: Any, method: Method) -> dict[str, np.ndarray]:
    """This process's part of a batch of synthetic images, with views and masks as the config draws them."""
    config = config.copy_and_resolve_references()
    local = config.batch_size // jax.process_count()
    drawn = min(local, MAX_DRAWN)
    config.data.update({"source": "synthetic", "num_examples": drawn})
    if config.method.get("provider") == "maps":
        config.method.provider = "boundary"  # whose map it is changes nothing on the device
        method = create_method(config)
    source = open_source(config.data)
    with pipeline.train_batches(source, method.views, data_config=config.data, batch_size=drawn, seed=0) as batches:
        batch = next(batches)
    return {key: np.resize(value, (local, *value.shape[1:])) for key, value in batch.items()}


def usage(facts: dict[str, Any], times: np.ndarray) -> dict[str, Any]:
    """MFU, and peak memory where the backend counts it: fields of `Report`."""
    fields = {}
    if peak := devices.peak_flops():
        fields["mfu"] = facts["model_flops_a_step"] / (float(times.mean()) * peak)
    if counted := devices.peak_memory():
        fields["peak_bytes"] = counted
    return fields


def create_report(config: Any, mode: str, times: np.ndarray, *, batch_size: int = 0, **fields: Any) -> Report:
    """The report of steps that took `times` seconds; fields: the optional ones of `Report`."""
    batch_size = batch_size or config.batch_size
    low, median, high = np.quantile(times, [0.1, 0.5, 0.9])
    return Report(
        mode=mode,
        method=config.method.name,
        preset=config.preset,
        batch_size=batch_size,
        dtype=config.dtype,
        platform=devices.describe_platform(),
        date=datetime.date.today().isoformat(),
        steps=len(times),
        seconds_a_step=float(median),
        seconds_low=float(low),
        seconds_high=float(high),
        images_per_second=batch_size / float(times.mean()),
        devices=jax.device_count(),
        **fields,
    )


def as_text(report: Report) -> str:
    """The report as a table."""
    r = report
    low, median, high = (f"{1e3 * seconds:.1f}" for seconds in (r.seconds_low, r.seconds_a_step, r.seconds_high))
    rows = {
        "mode": f"{r.mode}: {r.method}, preset {r.preset}, batch {r.batch_size}, {r.dtype}",
        "machine": f"{r.platform}, {len(os.sched_getaffinity(0))} CPU cores, {r.date}",
        "images/s": f"{r.images_per_second:.1f}, {r.images_per_second_per_device:.1f} a device",
        "ms a step": f"{median} (four of five between {low} and {high}), {r.steps} steps",
    }
    if r.images_per_cpu_second is not None:
        rows["images/s a core"] = f"{r.images_per_cpu_second:.1f} by CPU time"
    if r.data_wait is not None:
        rows["data wait"] = f"{r.data_wait:.1%} of the time"
    if r.model_flops_a_step is not None:
        compiler = "none" if r.compiler_flops_a_step is None else f"{r.compiler_flops_a_step / 1e9:.1f} G a device"
        image = r.model_flops_a_step / r.batch_size
        rows["model FLOPs"] = f"{r.model_flops_a_step / 1e9:.1f} G a step, {image / 1e9:.2f} G an image"
        rows["XLA's FLOPs"] = f"{compiler} and step, of the compiled program"
        rows["MFU"] = "unknown: no peak of this chip is known" if r.mfu is None else f"{r.mfu:.1%} of the bf16 peak"
    if r.peak_bytes is not None:
        rows["memory"] = f"{r.peak_bytes / 2**30:.2f} GiB a device at the peak"
    if r.compile_seconds is not None:
        rows["compile"] = f"{r.compile_seconds:.1f} s"
    return summary_table(rows)
