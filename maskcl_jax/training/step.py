"""One training step: the plan of a run in steps, the update, and the compiled program."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskcl_jax.data import on_device
from maskcl_jax.errors import UserError
from maskcl_jax.methods import Arrays, LossOutput, Method, StepContext, interface
from maskcl_jax.methods import create as create_method
from maskcl_jax.models.kernels import resolve
from maskcl_jax.ops import chunked
from maskcl_jax.performance import devices, flops
from maskcl_jax.training import optimizer, sharding, train_state
from maskcl_jax.training.train_state import TrainState
from maskcl_jax.views.base import View, batch_shapes

Loss = Callable[[Any, Arrays, StepContext], LossOutput]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run in steps.

    Attributes:
        total: Steps of the run.
        per_epoch: Steps per epoch.
        eval_every: Steps between online evaluations; 0: only after the last step. Likewise the others.
        save_every: Steps between checkpoints.
        keep_every: Checkpoints at multiples of it are kept.
    """

    total: int
    per_epoch: int
    eval_every: int
    save_every: int
    keep_every: int

    @classmethod
    def from_config(cls, config: Any, per_epoch: int) -> "Plan":
        """Returns the plan of a config. `total_steps` wins over `epochs`; a period in epochs is at least one step."""

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
        """Returns whether something periodic happens after `step` steps; after the last one it always does."""
        return step == self.total or (every > 0 and step % every == 0)


def accumulate(loss: Loss, params: Any, batch: Arrays, context: StepContext, *, parts: int) -> tuple[Any, LossOutput]:
    """Returns (gradients, output), the mean over `parts` micro-batches that are taken in turn, in the memory of one.

    Micro-batch i has the rows i, i + parts, ...: equally many of every device, so that no image moves to another. A
    loss sees its micro-batch only, batch_size / parts images:
    - reconstructions, means over images: loss and gradient are those of the whole batch;
    - in-batch negatives and BatchNorm: those of the micro-batch only; a contrast is against fewer;
    - the model_state moves after each micro-batch: later ones find the statistics and keys of earlier ones;
    - parameters and EMA target move once a step;
    - device randomness (noise, MoCo's shuffle) is drawn from `context.rng` folded with i: it differs from that of
      the whole batch.

    Args:
        loss: `Method.loss`.
        params: What to differentiate it with respect to.
        batch: The whole batch.
        context: Of the step.
        parts: Divides the batch.
    """

    def of_params(params, batch, context):
        out = loss(params, batch, context)
        return out.loss, out

    gradient = jax.grad(of_params, has_aux=True)
    if parts == 1:
        return gradient(params, batch, context)

    def add(carry, numbered):
        total, model_state = carry
        i, micro_batch = numbered
        of_part = context._replace(model_state=model_state, rng=jax.random.fold_in(context.rng, i))
        grads, out = gradient(params, micro_batch, of_part)
        return (jax.tree.map(jnp.add, total, grads), out.model_state), (out.loss, out.metrics)

    start = jax.tree.map(jnp.zeros_like, params), context.model_state
    (total, model_state), rows = jax.lax.scan(add, start, (jnp.arange(parts), chunked.split_rows(batch, parts)))
    mean_loss, mean_metrics = jax.tree.map(lambda x: x.mean(axis=0), rows)
    return jax.tree.map(lambda g: g / parts, total), LossOutput(mean_loss, mean_metrics, model_state)


def make_train_step(
    method: Method,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    total_steps: int,
    accumulation: int = 1,
    placed: TrainState | None = None,
    views: Sequence[View] | None = None,
) -> Callable[[TrainState, Arrays], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns (state, batch) -> (state, metrics): one update, a pure function for jit.

    All randomness on the device comes from (seed, step), so a resumed run draws what the first would have drawn.

    Args:
        method: Whose loss is minimized.
        tx: The optimizer.
        schedule: Its learning rate by step, for the log.
        seed: `config.seed`.
        total_steps: Of the run.
        accumulation: Micro-batches per step.
        placed: Where the state's arrays lie (`sharding.state_sharding`), if it may be split over `fsdp`.
        views: Of the method, if the batch is `images` and `index` and the step makes them itself (`data.on_device`).
    """

    def loss(params, batch, context):
        if placed is not None:
            params = sharding.gather_params(params, placed.params)
            context = context._replace(
                target_params=sharding.gather_params(context.target_params, placed.target_params)
            )
        out = method.loss(params, batch, context)
        interface.check_output(method, out, context.model_state)
        return out

    def train_step(state: TrainState, batch: Arrays) -> tuple[TrainState, dict[str, jax.Array]]:
        rng, progress = jax.random.fold_in(jax.random.key(seed), state.step), state.step / total_steps
        if views is not None:
            batch = on_device.batch_of(views, batch["images"], batch["index"], on_device.key_of(rng))
        momentum = {} if state.target_params is None else {"momentum": method.momentum(progress)}

        def moved_target(params):
            if state.target_params is None:
                return None
            return train_state.ema(state.target_params, method.target_params(params), momentum["momentum"])

        target_params = moved_target(state.params) if method.ema_first else state.target_params
        context = StepContext(target_params, state.model_state, rng, progress)
        grads, out = accumulate(loss, state.params, batch, context, parts=accumulation)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if not method.ema_first:
            target_params = moved_target(params)
        new_state = TrainState(state.step + 1, params, target_params, out.model_state, opt_state)
        metrics = {"learning_rate": schedule(state.step), "gradient_norm": optax.tree.norm(grads)}
        return new_state, {**out.metrics, **momentum, **metrics}

    return train_step


def check_platform(config: Any, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError if the devices do not have the attention implementation of the config."""
    platform = mesh.devices.flat[0].platform
    if getattr(config.model, "attention", "") == "cudnn" and platform not in ("gpu", "cuda"):
        raise UserError(f"model.attention='cudnn' needs an NVIDIA GPU, and this runs on {platform}: use xla")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The training step of a config on a mesh, not traced yet.

    Attributes:
        config: The run's.
        mesh: The devices.
        method: The config's.
        plan: The run in steps.
        shapes: Of the whole state.
        placed: The shardings of the state's arrays.
        make_state: key -> state of step 0.
        step: Jitted, (state, batch) -> (state, metrics); donates the state.
        images: The data set, if it lies on the devices (`on_device.place`); None if batches come from the host.
    """

    config: Any
    mesh: jax.sharding.Mesh
    method: Method
    plan: Plan
    shapes: TrainState
    placed: TrainState
    make_state: Callable
    step: jax.stages.Wrapped
    images: Any = None

    @classmethod
    def from_config(
        cls, config: Any, mesh: jax.sharding.Mesh, method: Method, per_epoch: int, images: jax.Array | None = None
    ) -> "Program":
        """Returns the program of a config.

        Args:
            config: The run's.
            mesh: The devices.
            method: The config's, created for the mesh.
            per_epoch: Steps per epoch.
            images: See the attributes.

        Raises:
            UserError: The optimizer, the schedule or the attention cannot work.
        """
        check_platform(config, mesh)
        plan = Plan.from_config(config, per_epoch)
        schedule = optimizer.learning_rate(config, total_steps=plan.total, steps_per_epoch=plan.per_epoch)
        tx = optimizer.create(config, schedule, frozen=method.frozen)

        @jax.jit  # traced once for its shapes and its values
        def make_state(key):
            return train_state.create(method, tx, key)

        shapes = jax.eval_shape(make_state, jax.random.key(0))
        placed = sharding.state_sharding(shapes, mesh)
        numbers = {"seed": config.seed, "total_steps": plan.total, "accumulation": config.accumulation}
        step = jax.jit(
            make_train_step(
                method, tx, schedule, placed=placed, views=None if images is None else method.views, **numbers
            ),
            donate_argnums=0,
            out_shardings=(placed, sharding.replicated(mesh)),
        )
        shapes = sharding.with_sharding(shapes, placed)
        parts = {"plan": plan, "shapes": shapes, "placed": placed, "make_state": make_state, "step": step}
        return cls(config=config, mesh=mesh, method=method, images=images, **parts)

    @property
    def platform(self) -> str:
        """What the devices are: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    def new_state(self) -> TrainState:
        """Returns the state of step 0. No device and no host ever holds more of it than its part."""
        # It runs once: a CPU compiles it in less than half of the time without optimizations.
        options = {"xla_backend_optimization_level": 0} if self.platform == "cpu" else None
        make_state = jax.jit(self.make_state, out_shardings=self.placed, compiler_options=options)
        return make_state(jax.random.key(self.config.seed))

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes, dtypes and shardings of a batch as the step takes it."""
        described = batch_shapes(self.method.views, self.config.batch_size, self.config.data.channels)
        split, kept = sharding.batch_sharding(self.mesh), {}
        if self.images is not None:
            described = {"index": ((self.config.batch_size,), "int32")}
            kept = {"images": jax.ShapeDtypeStruct(self.images.shape, self.images.dtype, sharding=self.images.sharding)}
        return kept | {
            key: jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype), sharding=split)
            for key, (shape, dtype) in described.items()
        }

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Moves a host batch to the devices, as the step takes it."""
        placed = sharding.put(batch, self.mesh)
        return placed if self.images is None else placed | {"images": self.images}

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step. It accepts states and batches of these shapes only, and is never compiled again."""
        return self.trace().lower().compile()

    def trace(self) -> jax.stages.Traced:
        """Traces the step with its shapes."""
        return self.step.trace(self.shapes, self.batch_shapes())

    def flops_per_image(self) -> float | None:
        """Returns `model_flops` per source image; None if the chip's peak is not known."""
        return self.model_flops() / self.config.batch_size if devices.peak_flops() else None

    def model_flops(self) -> float:
        """Returns the `matrix_flops` of one step on all devices, without what `remat` and kernels compute twice."""
        c = self.config
        if c.remat in ("none", "auto") and resolve(c.kernels, self.platform) == "plain":
            return flops.matrix_flops(self.trace().jaxpr)
        plain = c.copy_and_resolve_references()
        plain.remat, plain.kernels = "none", "plain"
        return Program.from_config(
            plain, self.mesh, create_method(plain, self.mesh), self.plan.per_epoch, self.images
        ).model_flops()
