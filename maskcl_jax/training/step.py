"""What one step does: the update, its length in steps of a run, and the program that the devices are given."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.compilation_cache import compilation_cache

from maskcl_jax.data import on_device
from maskcl_jax.errors import UserError
from maskcl_jax.methods import Aux, Carried
from maskcl_jax.methods import create as create_method
from maskcl_jax.performance import chips, flops
from maskcl_jax.training import optimizer, sharding, train_state
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


def check_platform(config, mesh) -> None:
    """Raises UserError where the devices do not have the attention that is asked for."""
    platform = mesh.devices.flat[0].platform
    if getattr(config.model, "attention", "") == "cudnn" and platform not in ("gpu", "cuda"):
        raise UserError(f"model.attention='cudnn' needs an NVIDIA GPU, and this runs on {platform}: use xla")


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
        """per_epoch: steps an epoch. Raises UserError for an optimiser, a schedule or an attention that cannot be."""
        check_platform(config, mesh)
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

    def compile(self):
        """The step, ready: it accepts this state and batch alone, and is never compiled again."""
        if self.config.compile_cache:
            jax.config.update("jax_compilation_cache_dir", self.config.compile_cache)
            compilation_cache.reset_cache()  # the first program that was compiled has settled it otherwise
        return self.trace().lower().compile()

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
        return Program.of(
            plain, self.mesh, create_method(plain, self.mesh), self.plan.per_epoch, self.images
        ).model_flops()
