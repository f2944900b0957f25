"""The training loop, read top to bottom: checks, state, step, loop, closing table."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax.data import on_device, pipeline
from maskcl_jax.data.sources import Source, open_source
from maskcl_jax.methods import create as create_method
from maskcl_jax.performance import devices
from maskcl_jax.training import (
    checkpoint,
    compile_cache,
    distributed,
    logging,
    memory,
    optimizer,
    run_folder,
    sharding,
    throughput,
    trackers,
)
from maskcl_jax.training.distributed import StopSignal
from maskcl_jax.training.monitor import Monitor, closing_rows
from maskcl_jax.training.step import Program
from maskcl_jax.training.train_state import TrainState
from maskcl_jax.views.base import open_views


def train(config: Any, workdir: str) -> dict[str, str]:
    """Trains from the newest checkpoint in a folder, or from initial values, to the last step.

    Args:
        config: Of the run.
        workdir: The run's folder; created if it is missing.

    Returns:
        The closing table, name -> text; {} on processes other than the first.

    Raises:
        UserError: Something that the user can fix; most of it is found before anything is written.
        Diverged: A loss is not finite.
        SystemExit: A signal stopped the run; the step is saved.
    """
    source, program = prepare(config)
    plan = program.plan
    with contextlib.ExitStack() as stack:  # closes what is open, the last first, however the run ends
        # --- The folder, and what runs where ------------------------------------------------------------------
        stack.enter_context(contextlib.closing(run_folder.claim(workdir, config)))
        log, quiet = config.log, jax.process_index() != 0
        live = logging.LiveLine(plan.total, every_steps=log.every_steps, every_seconds=log.every_seconds, quiet=quiet)
        for line in description(source, program, workdir):
            live.say(line)

        # --- State, batches and step --------------------------------------------------------------------------
        checkpoints = checkpoint.Checkpoints(workdir, keep_last=config.checkpoint.keep_last, keep_every=plan.keep_every)
        stack.enter_context(contextlib.closing(checkpoints))
        facts = source.facts()
        checkpoints.check_data(facts, accept=config.data.accept_changes)
        state = checkpoints.restore_newest(program.shapes, live.say, move=True)
        state = program.new_state() if state is None else state
        start = int(state.step)
        live.say(opening_line(state, checkpoints.made_on()))
        # From here on a process that fails ends at once: the others wait for it.
        stack.enter_context(distributed.exit_on_failure())
        batches = open_batches(source, program, start)
        stack.enter_context(contextlib.closing(batches))
        shown = {"to": log.to, "config": config_lib.flat(config)}
        writers = stack.enter_context(contextlib.closing(logging.Writers(workdir, resume_step=start, **shown)))
        # Compiled here, once: a batch of other shapes is an error instead of a second compilation. A run that is done
        # makes no step.
        train_step: Callable[..., Any] = program.compile() if start < plan.total else program.step

        # --- The loop -----------------------------------------------------------------------------------------
        flops, peak = program.flops_per_image(), devices.peak_flops()
        rate = throughput.Throughput(config.batch_size, flops_per_image=flops, peak=peak)
        recorder = logging.Recorder(live, writers, rate, every_steps=log.every_steps)
        where = {"method": program.method, "mesh": program.mesh, "images": program.images}
        monitor = Monitor(config, workdir, source=source, say=live.say, **where)
        stop = stack.enter_context(StopSignal())
        if start == 0:
            recorder.evaluation(0, *monitor.evaluate(state))
        for step in range(start + 1, plan.total + 1):
            with rate.waiting():
                batch = next(batches)
            state, device_metrics = train_step(state, program.put(batch))
            # Metrics are fetched one step late: the host waits for the step before while this one runs.
            recorder.step(step, device_metrics)
            rate.step()
            stopping = stop.due(step)
            evaluating = plan.due(step, plan.eval_every) and not stopping
            saving = plan.due(step, plan.save_every) or stopping
            if evaluating or saving:
                recorder.flush()
                with rate.paused():
                    if evaluating:
                        recorder.evaluation(step, *monitor.evaluate(state))
                    if saving:
                        checkpoints.save(step, state, config, facts)
            if stopping:
                live.say(f"stopped by {stop.signal.name}: step {step} is saved; the same command goes on there")
                raise SystemExit(128 + stop.signal)

    # --- The closing table, when everything is on disk --------------------------------------------------------
    if quiet:
        return {}
    rows = closing_rows(config, workdir, rate=rate, skipped=len(source.skipped), monitor=monitor)
    if start < plan.total:  # else nothing was measured
        run_folder.write_summary(workdir, rows)
    live.say(logging.summary_table(rows))
    return rows


def prepare(config: Any) -> tuple[Source, Program]:
    """Returns the images and the step of a run. What can be refused is refused here, before anything is written.

    Args:
        config: Of the run.

    Raises:
        UserError: Fields are wrong or do not go together, or do not suit the devices or the data.
    """
    config_lib.check(config)
    compile_cache.use(config.compile_cache)
    trackers.check(config.log.to)
    mesh = sharding.create_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh, parts=config_lib.split_fields(config))
    sharding.check_batch(config.eval.batch_size, mesh, field="eval.batch_size")
    config = memory.with_remat(config, mesh)
    method = create_method(config, mesh)
    source = open_source(config.data)
    open_views(method.views, source.split("train"), config.data)  # a check; the pipeline opens them again
    per_epoch, images = pipeline.steps_per_epoch(source, config.batch_size), None
    if config.data.on_device:
        split = sharding.batch_sharding(mesh)
        images = on_device.place(source, method.views, channels=config.data.channels, devices=mesh.size, sharding=split)
    return source, Program.from_config(config, mesh, method, per_epoch, images)


def description(source: Source, program: Program, workdir: str) -> list[str]:
    """Returns the first lines of a run: what runs where, and warnings."""
    config, plan = program.config, program.plan
    loading = "input on the device"
    if program.images is None:
        loading = pipeline.describe_loading(source, program.method.views, config.data)
    line = (
        f"{config.method.name}, preset {config.preset} | {source.description} | {loading} | "
        f"{devices.describe_platform()}{memory.describe(config)} | {plan.total} steps of {config.batch_size} images | "
        f"{workdir}"
    )
    shortened = optimizer.shortened_warmup(config, total_steps=plan.total, steps_per_epoch=plan.per_epoch)
    return [line, *filter(None, (devices.accelerator_fallback(), shortened))]


def opening_line(state: TrainState, made_on: Mapping[str, int]) -> str:
    """Returns what a run prints of the state that it begins with: its parameters, or the step that it continues from.

    Args:
        state: The new or the restored one.
        made_on: `Checkpoints.made_on`, the processes and devices before; state and data do not depend on them.
    """
    step, now = int(state.step), checkpoint.machine_counts()
    if step == 0:
        return logging.parameter_overview(state.params)
    text = f"resumed from step {step}"
    if not made_on or made_on == now:
        return text
    text += " on {processes} processes with {devices} devices".format(**now)
    text += ", before on {processes} with {devices}".format(**made_on)
    return text


def open_batches(
    source: Source, program: Program, start: int
) -> pipeline.Batches | Generator[dict[str, np.ndarray], None, None]:
    """Returns the host batches of this process after `start` steps, for `Program.put`; close them when done."""
    config = program.config
    options = {"batch_size": config.batch_size, "seed": config.seed, "start_step": start}
    options |= {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if program.images is not None:
        return on_device.indices(source.num_examples("train"), **options)
    return pipeline.train_batches(source, program.method.views, data_config=config.data, **options)
