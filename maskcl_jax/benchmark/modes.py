"""What the benchmark times: the step, the host's input, both together, the frozen encoder."""

import contextlib
import dataclasses
import datetime
import os
import time

import jax
import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax.data import jpegs, on_device, pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create as create_method
from maskcl_jax.performance import chips
from maskcl_jax.training import loop, platform, sharding
from maskcl_jax.training.logging import summary_table
from maskcl_jax.training.step import Program
from maskcl_jax.training.throughput import Throughput

MADE_UP = 64  # images that are really drawn for a made-up batch; larger ones repeat them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timer:
    """steps: how many are timed, after `warmup` that are not. profile: a folder for a trace, or ""."""

    steps: int = 20
    warmup: int = 3
    profile: str = ""

    def device(self, one) -> np.ndarray:
        """Seconds between the results of consecutive calls of `one`, which returns device arrays; one is in flight."""
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

    def host(self, one) -> tuple[np.ndarray, float]:
        """(seconds of every call, processor seconds of all of them)."""
        # What the background thread had ready would come for nothing: its queue is emptied first.
        for _ in range(self.warmup + 3):
            one()
        times, cpu = [time.perf_counter()], time.process_time()
        for _ in range(self.steps):
            one()
            times.append(time.perf_counter())
        return np.diff(times), time.process_time() - cpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What one run measured; None: not known, or not part of the mode. Seconds, bytes, FLOPs, images."""

    mode: str
    method: str
    preset: str
    batch_size: int
    dtype: str
    platform: str
    date: str
    steps: int
    seconds_a_step: float  # the median
    seconds_low: float  # a tenth of the steps took less,
    seconds_high: float  # a tenth took more
    images_per_second: float  # by the mean
    devices: int
    model_flops_a_step: float | None = None
    compiler_flops_a_step: float | None = None  # of one device
    mfu: float | None = None
    peak_bytes: int | None = None  # of the fullest device
    compile_seconds: float | None = None
    data_wait: float | None = None
    images_per_cpu_second: float | None = None

    @property
    def images_per_second_per_device(self) -> float:
        """Of one device."""
        return self.images_per_second / self.devices


# --- The modes ------------------------------------------------------------------------------------------------


def step(config, timer: Timer) -> Report:
    """The training step alone; with data.on_device, too, it is given its views."""
    program = program_of(config, per_epoch=1000)
    compiled, facts = compile_step(program)
    state, batch = program.new_state(), program.put(made_up_batch(config, program.method))

    def one():
        nonlocal state
        state, values = compiled(state, batch)
        return values

    times = timer.device(one)
    return reported(config, "step", times, **facts, **usage(facts, times))


def host(config, timer: Timer) -> Report:
    """The input pipeline alone. Of many processes, this one's share of every batch."""
    program, source = program_of(config, per_epoch=1000), open_source(config.data)
    with contextlib.closing(loop.open_batches(source, program, 0)) as batches:
        times, cpu = timer.host(lambda: next(batches))
    images = timer.steps * config.batch_size // jax.process_count()
    return reported(config, "input", times, images_per_cpu_second=images / cpu)


def end_to_end(config, timer: Timer) -> Report:
    """The loop of training, without evaluation and checkpoints."""
    source = open_source(config.data)
    program = program_of(config, pipeline.steps_per_epoch(source, config.batch_size), source)
    compiled, facts = compile_step(program)
    state, rate = program.new_state(), Throughput(config.batch_size)
    with contextlib.closing(loop.open_batches(source, program, 0)) as batches:

        def one():
            nonlocal state
            with rate.waiting():
                batch = next(batches)
            state, values = compiled(state, program.put(batch))
            rate.step()
            return values

        times = timer.device(one)
    return reported(config, "end_to_end", times, data_wait=rate.data_wait(timer.steps), **facts, **usage(facts, times))


def evaluate(config, timer: Timer) -> Report:
    """Features of the training images, as many batches as asked for."""
    source = open_source(config.data)
    program = program_of(config, pipeline.steps_per_epoch(source, config.batch_size))
    mesh, method, state, size = program.mesh, program.method, program.new_state(), config.eval.batch_size
    sharding.check_batch(size, mesh, field="eval.batch_size")
    features = jax.jit(
        lambda state, images: method.features(state.params, state.model_state, images, kind=config.eval.feature),
        out_shardings=sharding.replicated(mesh),
    )
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    rate = Throughput(size)
    with contextlib.ExitStack() as stack:

        def read():
            while True:  # a small data set again and again
                batches = pipeline.eval_batches(source, "train", data_config=config.data, batch_size=size, **part)
                yield from stack.enter_context(contextlib.closing(batches))

        batches = read()

        def one():
            with rate.waiting():
                batch = next(batches)
            images = sharding.put({"image": batch["image"]}, mesh)["image"]
            rate.step()
            return features(state, images)

        times = timer.device(one)
    return reported(config, "evaluate", times, batch_size=size, data_wait=rate.data_wait(timer.steps))


def of_jpegs(config, folder: str, count: int):
    """The config with `count` JPEGs as its data."""
    if count < config.batch_size:
        raise UserError(f"--jpegs={count} is less than batch_size={config.batch_size}: make at least one batch")
    jpegs.write(folder, count)
    config = config.copy_and_resolve_references()
    config.data.source, config.data.path, config.data.test_path = "folder", folder, ""
    return config


# --- What they share ------------------------------------------------------------------------------------------


def program_of(config, per_epoch: int, source=None) -> Program:
    """The step on the devices of this machine; with data.on_device, and given the source, on images that lie there."""
    mesh, images = sharding.create_mesh(config.mesh), None
    method = create_method(config, mesh)
    sharding.check_batch(config.batch_size, mesh, **config_lib.split_fields(config))
    if source is not None and config.data.on_device:
        images = on_device.place(
            source,
            method.views,
            channels=config.data.channels,
            devices=mesh.size,
            sharding=sharding.batch_sharding(mesh),
        )
    return Program.of(config, mesh, method, per_epoch, images)


def compile_step(program) -> tuple:
    """(the compiled step, what is known of it)."""
    begin = time.monotonic()
    compiled = program.compile()
    seconds = time.monotonic() - begin
    compiler = (compiled.cost_analysis() or {}).get("flops")
    facts = {"compiler_flops_a_step": compiler, "model_flops_a_step": program.model_flops()}
    return compiled, facts | {"compile_seconds": seconds, "peak_bytes": bytes_of(compiled)}


def bytes_of(compiled) -> int | None:
    """What the step holds at once on a device, as the compiler laid it out."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + new_outputs + memory.temp_size_in_bytes


def made_up_batch(config, method) -> dict[str, np.ndarray]:
    """This process's share of one batch of made-up images, with views and masks as the config draws them."""
    config = config.copy_and_resolve_references()
    local = config.batch_size // jax.process_count()
    drawn = min(local, MADE_UP)
    config.data.update({"source": "synthetic", "num_examples": drawn})
    if config.method.get("provider") == "maps":
        config.method.provider = "boundary"  # whose map it is changes nothing on the device
        method = create_method(config)
    source = open_source(config.data)
    with pipeline.train_batches(source, method.views, data_config=config.data, batch_size=drawn, seed=0) as batches:
        batch = next(batches)
    return {key: np.resize(value, (local, *value.shape[1:])) for key, value in batch.items()}


def usage(facts: dict, times: np.ndarray) -> dict:
    """MFU, and the peak of memory where the backend counts it."""
    found = {}
    if peak := chips.peak_flops():
        found["mfu"] = facts["model_flops_a_step"] / (float(times.mean()) * peak)
    if counted := platform.peak_memory():
        found["peak_bytes"] = counted
    return found


def reported(config, mode: str, times: np.ndarray, *, batch_size: int = 0, **fields) -> Report:
    """The report of steps that took `times`."""
    batch_size = batch_size or config.batch_size
    low, median, high = np.quantile(times, [0.1, 0.5, 0.9])
    return Report(
        mode=mode,
        method=config.method.name,
        preset=config.preset,
        batch_size=batch_size,
        dtype=config.dtype,
        platform=platform.describe_platform(),
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
        rows["images/s a core"] = f"{r.images_per_cpu_second:.1f} by processor time"
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
