"""The loop, read top to bottom: facts, state, step, loop, closing table."""

import contextlib
import dataclasses

import jax
import optax

from maskcl_jax import checkpoint, metrics, optimizer, sharding, train_state
from maskcl_jax import config as config_lib
from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.methods import Carried
from maskcl_jax.methods import create as create_method
from maskcl_jax.monitor import Monitor, closing_rows
from maskcl_jax.stopping import StopSignal


@dataclasses.dataclass(frozen=True)
class Plan:
    """The run in steps. A period of 0 means never, apart from the last step."""

    total: int
    per_epoch: int
    eval_every: int
    save_every: int
    keep_every: int

    @classmethod
    def of(cls, config, per_epoch: int) -> "Plan":
        """`total_steps` wins over `epochs`; a period in epochs is at least one step."""

        def steps(epochs):
            return max(1, round(epochs * per_epoch)) if epochs > 0 else 0

        return cls(
            total=config.total_steps or steps(config.epochs),
            per_epoch=per_epoch,
            eval_every=steps(config.eval.every_epochs),
            save_every=steps(config.checkpoint.every_epochs),
            keep_every=steps(config.checkpoint.keep_every_epochs),
        )

    def due(self, step: int, every: int) -> bool:
        """Whether something periodic happens after `step` steps; it always does after the last one."""
        return step == self.total or (every > 0 and step % every == 0)


def make_train_step(method, tx, schedule, *, seed: int, total_steps: int):
    """(state, batch) -> (state, metrics): one update, a pure function for jit.

    All randomness on the device comes from (seed, step), so a resumed run draws what the first would have drawn.
    """

    def train_step(state: train_state.TrainState, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        moves = {}

        def moved(target_params, params):
            if target_params is None:
                return None
            moves["momentum"] = method.momentum(state.step / total_steps)
            return train_state.ema(target_params, method.target_of(params), moves["momentum"])

        target_params = moved(state.target_params, state.params) if method.ema_first else state.target_params
        progress = state.step / total_steps
        carried = Carried(state.model_state, target_params, state.target_state, state.queue, progress)

        def loss_of(params):
            return method.loss(params, carried, batch, rng)

        (_, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if not method.ema_first:
            target_params = moved(target_params, params)
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            target_params=target_params,
            model_state=aux.model_state,
            target_state=aux.target_state,
            queue=aux.queue,
            opt_state=opt_state,
        )
        return new_state, {
            **aux.metrics,
            **moves,
            "learning_rate": schedule(state.step),
            "gradient_norm": optax.tree.norm(grads),
        }

    return train_step


def open_state(checkpoints, new_state, key, placed):
    """The newest checkpoint's state, or a new one where there is none; either lies as `placed` says."""
    if checkpoints.latest() is None:
        return new_state(key)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        jax.eval_shape(new_state, key),
    )
    return checkpoints.restore(abstract)


def train(config, workdir: str) -> dict[str, str]:
    """Trains `config` in `workdir`, or goes on from the newest checkpoint there.

    Returns the closing table, name -> text. Raises UserError for what the user can mend (nothing is written
    then) and Diverged where a loss is not finite.
    """
    # --- Everything that can be refused is refused before anything is built -----------------------------------
    config_lib.check(config)
    mesh = sharding.create_mesh()
    sharding.check_batch(config.batch_size, mesh)
    sharding.check_batch(config.eval.batch_size, mesh, field="eval.batch_size")
    method = create_method(config)
    source = open_source(config.data)
    pipeline.open_maps(source, method.views, config.data)
    plan = Plan.of(config, pipeline.steps_per_epoch(source, config.batch_size))
    schedule = optimizer.learning_rate(config, total_steps=plan.total, steps_per_epoch=plan.per_epoch)
    tx = optimizer.create(config, schedule, frozen=method.frozen)
    checkpoint.claim(workdir, config)

    # --- What runs where --------------------------------------------------------------------------------------
    live = metrics.LiveLine(
        plan.total,
        every_steps=config.log.every_steps,
        every_seconds=config.log.every_seconds,
        quiet=jax.process_index() != 0,
    )
    live.say(
        f"{config.method.name}, preset {config.preset} | {source.description} | {metrics.describe_platform()} | "
        f"{plan.total} steps of {config.batch_size} images | {workdir}"
    )
    if warning := metrics.accelerator_fallback():
        live.say(warning)

    # --- State and step ---------------------------------------------------------------------------------------
    placed = sharding.replicated(mesh)
    new_state = jax.jit(lambda key: train_state.create(method, tx, key), out_shardings=placed)
    checkpoints = checkpoint.Checkpoints(workdir, keep_last=config.checkpoint.keep_last, keep_every=plan.keep_every)
    state = open_state(checkpoints, new_state, jax.random.key(config.seed), placed)
    start = int(state.step)
    live.say(f"resumed from step {start}" if start else metrics.parameter_overview(state.params))
    train_step = jax.jit(
        make_train_step(method, tx, schedule, seed=config.seed, total_steps=plan.total),
        donate_argnums=0,
        out_shardings=(placed, placed),
    )

    # --- The loop ---------------------------------------------------------------------------------------------
    batches = pipeline.train_batches(
        source,
        method.views,
        data_config=config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    monitor = Monitor(config, workdir, source=source, method=method, mesh=mesh)
    writers = metrics.create_writers(workdir, resume_step=start)
    rate = metrics.Throughput(config.batch_size)
    meter = metrics.Meter()

    def report(row):
        """One step's metrics, fetched: to the live line always, to the files every few steps."""
        if row is None:
            return
        step, values = row
        live.update(step, values, images_per_second=rate.images_per_second(), eta=rate.eta(plan.total - step))
        if step % config.log.every_steps == 0 or step in (1, plan.total):
            writers.write_scalars(step, {**values, "images_per_second": rate.images_per_second()})

    def look(step):
        scalars, pictures = monitor.look(state)
        writers.write_scalars(step, scalars)
        writers.write_images(step, pictures)
        if scalars:
            live.say(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in scalars.items()))

    with (
        contextlib.closing(batches),
        contextlib.closing(writers),
        contextlib.closing(checkpoints),
        StopSignal() as stop,
    ):
        if start == 0:
            look(0)
        for step in range(start + 1, plan.total + 1):
            state, device_metrics = train_step(state, sharding.put(next(batches), mesh))
            # Metrics are fetched one step late: the host waits for the step before while this one runs.
            report(meter.push(step, device_metrics))
            rate.step()
            stopping = stop.received is not None
            if stopping or plan.due(step, plan.eval_every) or plan.due(step, plan.save_every):
                report(meter.flush())
                with rate.paused():
                    if plan.due(step, plan.eval_every) and not stopping:
                        look(step)
                    if plan.due(step, plan.save_every) or stopping:
                        checkpoints.save(step, state)
            if stopping:
                live.say(f"stopped by {stop.received.name}: step {step} is saved; the same command goes on there")
                raise SystemExit(128 + stop.received)
        rows = closing_rows(config, workdir, images_per_second=rate.overall(), skipped=len(source.skipped))
    live.say(metrics.summary_table(rows))
    return rows
