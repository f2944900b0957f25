"""The loop, read top to bottom: facts, state, step, loop, closing table."""

import contextlib

import jax

from maskcl_jax import config as config_lib
from maskcl_jax.data import on_device, pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.methods import create as create_method
from maskcl_jax.performance import chips
from maskcl_jax.training import checkpoint, distributed, logging, optimizer, platform, run_folder, sharding, throughput
from maskcl_jax.training.monitor import Monitor, closing_rows
from maskcl_jax.training.preemption import StopSignal
from maskcl_jax.training.step import Program
from maskcl_jax.views.base import open_views


def open_batches(source, program: Program, start: int):
    """This process's host batches from step `start` on; close them. `Program.put` moves them to the devices."""
    config = program.config
    options = {"batch_size": config.batch_size, "seed": config.seed, "start_step": start}
    options |= {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if program.images is not None:
        return on_device.indices(source.num_examples("train"), **options)
    return pipeline.train_batches(source, program.method.views, data_config=config.data, **options)


def opening_line(state, made_on: dict) -> str:
    """The line that says which state a run begins with.

    made_on: `Checkpoints.made_on`, the processes and devices before; state and data do not depend on them.
    """
    step, now = int(state.step), checkpoint.machines()
    if step == 0:
        return logging.parameter_overview(state.params)
    text = f"resumed from step {step}"
    if not made_on or made_on == now:
        return text
    text += " on {processes} processes with {devices} devices".format(**now)
    text += ", before on {processes} with {devices}".format(**made_on)
    return text


def train(config, workdir: str) -> dict[str, str]:
    """Trains `config` in `workdir`, or continues from the newest checkpoint there.

    Returns the closing table, name -> text, on process 0. Raises UserError for what the user can fix (nothing is
    written then) and Diverged if a loss is not finite.
    """
    # --- Everything that can be refused is refused before anything is built -----------------------------------
    config_lib.check(config)
    mesh = sharding.create_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh, **config_lib.split_fields(config))
    sharding.check_batch(config.eval.batch_size, mesh, field="eval.batch_size")
    method = create_method(config, mesh)
    source = open_source(config.data)
    open_views(method.views, source.split("train"), config.data)  # a check; the pipeline opens them again
    per_epoch, images = pipeline.steps_per_epoch(source, config.batch_size), None
    if config.data.on_device:
        images = on_device.place(
            source,
            method.views,
            channels=config.data.channels,
            devices=mesh.size,
            sharding=sharding.batch_sharding(mesh),
        )
    program = Program.of(config, mesh, method, per_epoch, images)
    plan = program.plan
    lock = run_folder.claim(workdir, config)

    # --- What runs where --------------------------------------------------------------------------------------
    live = logging.LiveLine(
        plan.total,
        every_steps=config.log.every_steps,
        every_seconds=config.log.every_seconds,
        quiet=jax.process_index() != 0,
    )
    loading = "input on the device"
    if images is None:
        loading = pipeline.describe_loading(source, method.views, config.data)
    live.say(
        f"{config.method.name}, preset {config.preset} | {source.description} | {loading} | "
        f"{platform.describe_platform()} | {plan.total} steps of {config.batch_size} images | {workdir}"
    )
    shortened = optimizer.shortened_warmup(config, total_steps=plan.total, steps_per_epoch=plan.per_epoch)
    for warning in filter(None, (platform.accelerator_fallback(), shortened)):
        live.say(warning)

    # --- State and step ---------------------------------------------------------------------------------------
    checkpoints = checkpoint.Checkpoints(workdir, keep_last=config.checkpoint.keep_last, keep_every=plan.keep_every)
    facts = source.facts()
    checkpoints.check_data(facts, accept=config.data.accept_changes)
    state = checkpoints.restore_newest(program.shapes, live.say, move=True)
    state = program.new_state() if state is None else state
    start = int(state.step)
    live.say(opening_line(state, checkpoints.made_on()))

    # --- The loop ---------------------------------------------------------------------------------------------
    batches = open_batches(source, program, start)
    monitor = Monitor(config, workdir, source=source, method=method, mesh=mesh, images=images, say=live.say)
    writers = logging.Writers(workdir, resume_step=start)
    # Compiled here once and for all: a step of other shapes would be an error, not a second compilation.
    train_step = program.compile()
    rate = throughput.Throughput(config.batch_size, flops_per_image=program.flops_per_image(), peak=chips.peak_flops())
    meter = throughput.Meter()

    def report(row):
        """One step's metrics, fetched: to the live line always, to the files every few steps."""
        if row is None:
            return
        step, values = row
        live.update(step, values, images_per_second=rate.images_per_second(), eta=rate.eta(plan.total - step))
        if step % config.log.every_steps == 0 or step in (1, plan.total):
            writers.write_scalars(step, values | rate.scalars())

    def look(step):
        """The online k-NN and the pictures of the current state: to the files, and the k-NN as a line."""
        scalars, pictures = monitor.look(state)
        writers.write_scalars(step, scalars)
        writers.write_images(step, pictures)
        if scalars:
            live.say(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in scalars.items()))

    with (
        contextlib.closing(lock),
        contextlib.closing(batches),
        contextlib.closing(writers),
        contextlib.closing(checkpoints),
        StopSignal() as stop,
        distributed.exit_on_failure(),
    ):
        if start == 0:
            look(0)
        for step in range(start + 1, plan.total + 1):
            with rate.waiting():
                batch = next(batches)
            state, device_metrics = train_step(state, program.put(batch))
            # Metrics are fetched one step late: the host waits for the step before while this one runs.
            report(meter.push(step, device_metrics))
            rate.step()
            stopping = stop.due(step)
            if stopping or plan.due(step, plan.eval_every) or plan.due(step, plan.save_every):
                report(meter.flush())
                with rate.paused():
                    if plan.due(step, plan.eval_every) and not stopping:
                        look(step)
                    if plan.due(step, plan.save_every) or stopping:
                        checkpoints.save(step, state, config, facts)
            if stopping:
                live.say(f"stopped by {stop.signal.name}: step {step} is saved; the same command goes on there")
                raise SystemExit(128 + stop.signal)
    if jax.process_index() != 0:
        return {}
    rows = closing_rows(config, workdir, rate=rate, skipped=len(source.skipped), monitor=monitor)
    live.say(logging.summary_table(rows))
    return rows
