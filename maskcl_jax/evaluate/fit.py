"""The loop that trains a classifier or a segmenter: the road of the training loop, made short."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from maskcl_jax.training import checkpoint, sharding
from maskcl_jax.training.logging import LiveLine
from maskcl_jax.training.preemption import StopSignal
from maskcl_jax.training.throughput import Meter, Throughput


class Fit(NamedTuple):
    """What is trained, and for how long.

    new_state: (key, constants) -> state, a pytree of arrays. step: (state, constants, batch, step number) -> (state,
    metrics). constants: arrays that stay, for instance frozen weights. total: steps; save_every: 0 is at the end alone.
    """

    new_state: Callable
    step: Callable
    constants: Any
    total: int
    save_every: int = 0


def fit(plan: Fit, batches: Callable, *, workdir: pathlib.Path, mesh, seed: int, batch_size: int):
    """The state after `plan.total` steps; goes on from the newest checkpoint in `workdir`.

    batches: (first step) -> iterator of host batches, to be closed. A signal saves and leaves, as in training.
    """
    placed = sharding.replicated(mesh)
    live = LiveLine(plan.total, every_steps=10, every_seconds=10.0, quiet=jax.process_index() != 0)
    checkpoints = checkpoint.Checkpoints(str(workdir), keep_last=1)
    new_state = jax.jit(plan.new_state, out_shardings=placed)
    state, start = opened(checkpoints, new_state, (jax.random.key(seed), plan.constants), placed)
    if start:
        live.say(f"resumed from step {start}")
    step_fn = jax.jit(plan.step, donate_argnums=0, out_shardings=(placed, placed))
    rate, meter, feed = Throughput(batch_size), Meter(), batches(start)

    def report(row):
        if row is not None:
            live.update(*row, images_per_second=rate.images_per_second(), eta=rate.eta(plan.total - row[0]))

    with contextlib.closing(checkpoints), contextlib.closing(feed), StopSignal() as stop:
        for number in range(start, plan.total):
            state, values = step_fn(state, plan.constants, sharding.put(next(feed), mesh), number)
            report(meter.push(number + 1, values))
            rate.step()
            due = number + 1 == plan.total or (plan.save_every and (number + 1) % plan.save_every == 0)
            stopping = stop.due(number + 1)
            if due or stopping:
                report(meter.flush())
                checkpoints.save(number + 1, state)
            if stopping:
                live.say(f"stopped by {stop.signal.name}: step {number + 1} is saved; the same command goes on there")
                raise SystemExit(128 + stop.signal)
    return state


def opened(checkpoints, new_state, arguments, placed) -> tuple[Any, int]:
    """(the newest checkpoint's state, its step), or a new state and 0."""
    latest = checkpoints.latest()
    if latest is None:
        return new_state(*arguments), 0
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        jax.eval_shape(new_state, *arguments),
    )
    return checkpoints.restore(abstract), latest
