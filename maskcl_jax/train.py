"""The loop, read top to bottom: facts, state, step, loop, closing table."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskcl_jax import checkpoint, chips, distributed, flops, metrics, optimizer, sharding, train_state
from maskcl_jax import config as config_lib
from maskcl_jax.data import on_device, pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.methods import Aux, Carried
from maskcl_jax.methods import create as create_method
from maskcl_jax.monitor import Monitor, closing_rows
from maskcl_jax.preemption import StopSignal
from maskcl_jax.views import batch_shapes


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


def accumulated(loss, params, carried: Carried, batch, rng, *, parts: int):
    """(gradients, Aux) of a batch taken as `parts` micro-batches in turn: the memory of one, and the mean of all.

    loss: `Method.loss`. Micro-batch i has the rows i, i + parts, ...: of every device's share as many, so that no image
    moves. What a loss sees is its micro-batch, batch_size / parts images:
    - reconstructions, means over images: loss and gradient are those of the whole batch;
    - in-batch negatives and BatchNorm: those of the micro-batch alone; a contrast is against fewer;
    - running statistics and queue move after each micro-batch, so that later ones find the keys of earlier ones;
    - parameters and EMA target move once a step;
    - device randomness (noise, MoCo's shuffle) is drawn from `rng` folded with i: another draw than the whole batch's.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (_, aux), grads = gradient(params, carried, batch, rng)
        return grads, aux
    micro_batches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

    def add(so_far, numbered):
        total, (model_state, target_state, queue) = so_far
        i, micro_batch = numbered
        seen = carried._replace(model_state=model_state, target_state=target_state, queue=queue)
        (_, aux), grads = gradient(params, seen, micro_batch, jax.random.fold_in(rng, i))
        return (jax.tree.map(jnp.add, total, grads), tuple(aux[1:])), aux.metrics

    begin = jax.tree.map(jnp.zeros_like, params), (carried.model_state, carried.target_state, carried.queue)
    (total, left), rows = jax.lax.scan(add, begin, (jnp.arange(parts), micro_batches))
    means = jax.tree.map(lambda x: x.mean(axis=0), rows)
    return jax.tree.map(lambda g: g / parts, total), Aux(means, *left)


def make_train_step(
    method, tx, schedule, *, seed: int, total_steps: int, accumulation: int = 1, placed=None, views=None
):
    """(state, batch) -> (state, metrics): one update, a pure function for jit.

    All randomness on the device comes from (seed, step), so a resumed run draws what the first would have drawn.
    placed: where the state's arrays lie (`sharding.place_state`), if it may be split over `fsdp`. views: of the method,
    where the batch is `images` and `index` and the step makes them itself (`data.on_device`).
    """

    def loss(params, carried, batch, rng):
        if placed is not None:
            params = sharding.gathered(params, placed.params)
            target_params = sharding.gathered(carried.target_params, placed.target_params)
            carried = carried._replace(target_params=target_params)
        return method.loss(params, carried, batch, rng)

    def train_step(state: train_state.TrainState, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if views is not None:
            batch = on_device.batch_of(views, batch["images"], batch["index"], on_device.key_of(rng))
        moves = {}

        def moved(target_params, params):
            if target_params is None:
                return None
            moves["momentum"] = method.momentum(state.step / total_steps)
            return train_state.ema(target_params, method.target_of(params), moves["momentum"])

        target_params = moved(state.target_params, state.params) if method.ema_first else state.target_params
        progress = state.step / total_steps
        carried = Carried(state.model_state, target_params, state.target_state, state.queue, progress)
        grads, aux = accumulated(loss, state.params, carried, batch, rng, parts=accumulation)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The training step of a config on a mesh, traced by nobody yet.

    images: the data set, where it lies on the devices (`on_device.place`); None where batches come from the host.
    shapes, placed: of the whole state, and where its arrays lie. step: jitted, (state, batch) -> (state, metrics); the
    state that it is given is gone afterwards.
    """

    config: Any
    mesh: Any
    method: Any
    plan: Plan
    shapes: train_state.TrainState
    placed: train_state.TrainState
    make_state: Callable
    step: Callable
    images: Any = None

    @classmethod
    def of(cls, config, mesh, method, per_epoch: int, images=None) -> "Program":
        """per_epoch: steps an epoch. Raises UserError for an optimiser or a schedule that cannot be."""
        plan = Plan.of(config, per_epoch)
        schedule = optimizer.learning_rate(config, total_steps=plan.total, steps_per_epoch=plan.per_epoch)
        tx = optimizer.create(config, schedule, frozen=method.frozen)

        def make_state(key):
            return train_state.create(method, tx, key)

        shapes = jax.eval_shape(make_state, jax.random.key(0))
        placed = sharding.place_state(shapes, mesh)
        numbers = {"seed": config.seed, "total_steps": plan.total, "accumulation": config.accumulation}
        step = jax.jit(
            make_train_step(
                method, tx, schedule, placed=placed, views=None if images is None else method.views, **numbers
            ),
            donate_argnums=0,
            out_shardings=(placed, sharding.replicated(mesh)),
        )
        shapes = sharding.placed_shapes(shapes, placed)
        parts = {"plan": plan, "shapes": shapes, "placed": placed, "make_state": make_state, "step": step}
        return cls(config=config, mesh=mesh, method=method, images=images, **parts)

    def new_state(self):
        """The state of step 0. No device and no host ever holds more of it than its part."""
        return jax.jit(self.make_state, out_shardings=self.placed)(jax.random.key(self.config.seed))

    def batch_shapes(self):
        """A batch as the step is given it: shapes and places."""
        described = batch_shapes(self.method.views, self.config.batch_size, self.config.data.channels)
        split, kept = sharding.batch_sharding(self.mesh), {}
        if self.images is not None:
            described = {"index": ((self.config.batch_size,), "int32")}
            kept = {"images": jax.ShapeDtypeStruct(self.images.shape, self.images.dtype, sharding=self.images.sharding)}
        return kept | {
            key: jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype), sharding=split)
            for key, (shape, dtype) in described.items()
        }

    def put(self, batch):
        """A host batch as the step takes it."""
        placed = sharding.put(batch, self.mesh)
        return placed if self.images is None else placed | {"images": self.images}

    def trace(self):
        """The step with its shapes (`jax.stages.Traced`)."""
        return self.step.trace(self.shapes, self.batch_shapes())

    def flops_per_image(self) -> float | None:
        """`model_flops` a source image; None where nothing can be made of it: the chip's peak is not known."""
        return self.model_flops() / self.config.batch_size if chips.peak_flops() else None

    def model_flops(self) -> float:
        """`flops.matrix_flops` of one step on all devices together, without what `remat` does twice."""
        if self.config.remat == "none":
            return flops.matrix_flops(self.trace().jaxpr)
        plain = self.config.copy_and_resolve_references()
        plain.remat = "none"
        return Program.of(plain, self.mesh, create_method(plain), self.plan.per_epoch, self.images).model_flops()


def open_state(checkpoints, program: Program):
    """The newest checkpoint's state, or a new one where there is none."""
    return program.new_state() if checkpoints.latest() is None else checkpoints.restore(program.shapes)


def open_batches(source, program: Program, start: int):
    """This process's host batches from step `start` on, to be closed; `Program.put` takes them to the devices."""
    config = program.config
    options = {"batch_size": config.batch_size, "seed": config.seed, "start_step": start}
    options |= {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if program.images is not None:
        return on_device.indices(source.num_examples("train"), **options)
    return pipeline.train_batches(source, program.method.views, data_config=config.data, **options)


def opening_line(source, state, made_on: dict) -> str:
    """What is said of the state that a run begins with.

    made_on: `Checkpoints.made_on`. On other hosts and devices the state is the same; the order of some data is not.
    """
    step, now = int(state.step), checkpoint.machines()
    if step == 0:
        return metrics.parameter_overview(state.params)
    text = f"resumed from step {step}"
    if not made_on or made_on == now:
        return text
    text += " on {processes} processes with {devices} devices".format(**now)
    text += ", before on {processes} with {devices}".format(**made_on)
    if made_on["processes"] != now["processes"] and pipeline.read_in_parts(source):
        text += f": from step {step + 1} on the images come in another order, as each process reads its own part"
    return text


def train(config, workdir: str) -> dict[str, str]:
    """Trains `config` in `workdir`, or goes on from the newest checkpoint there.

    Returns the closing table, name -> text, on process 0. Raises UserError for what the user can mend (nothing is
    written then) and Diverged where a loss is not finite.
    """
    # --- Everything that can be refused is refused before anything is built -----------------------------------
    config_lib.check(config)
    mesh = sharding.create_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh, parts=config.accumulation)
    sharding.check_batch(config.eval.batch_size, mesh, field="eval.batch_size")
    method = create_method(config)
    source = open_source(config.data)
    pipeline.open_maps(source, method.views, config.data)
    per_epoch, images = pipeline.steps_per_epoch(source, config.batch_size), None
    if config.data.on_device:
        images = on_device.place(source, method.views, channels=config.data.channels, mesh=mesh)
    program = Program.of(config, mesh, method, per_epoch, images)
    plan = program.plan
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
    checkpoints = checkpoint.Checkpoints(workdir, keep_last=config.checkpoint.keep_last, keep_every=plan.keep_every)
    state = open_state(checkpoints, program)
    start = int(state.step)
    live.say(opening_line(source, state, checkpoints.made_on()))

    # --- The loop ---------------------------------------------------------------------------------------------
    batches = open_batches(source, program, start)
    monitor = Monitor(config, workdir, source=source, method=method, mesh=mesh, images=images)
    writers = metrics.create_writers(workdir, resume_step=start)
    # Compiled here once and for all: a step of other shapes would be an error, not a second compilation.
    train_step = program.trace().lower().compile()
    rate = metrics.Throughput(config.batch_size, flops_per_image=program.flops_per_image(), peak=chips.peak_flops())
    meter = metrics.Meter()

    def report(row):
        """One step's metrics, fetched: to the live line always, to the files every few steps."""
        if row is None:
            return
        step, values = row
        live.update(step, values, images_per_second=rate.images_per_second(), eta=rate.eta(plan.total - step))
        if step % config.log.every_steps == 0 or step in (1, plan.total):
            writers.write_scalars(step, values | rate.scalars())

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
        distributed.ending_with_the_others(),
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
                        checkpoints.save(step, state)
            if stopping:
                live.say(f"stopped by {stop.signal.name}: step {step} is saved; the same command goes on there")
                raise SystemExit(128 + stop.signal)
    if jax.process_index() != 0:
        return {}
    rows = closing_rows(config, workdir, rate=rate, skipped=len(source.skipped))
    live.say(metrics.summary_table(rows))
    return rows
