"""The loop that trains a classifier or a segmenter on an encoder: the training loop, made short."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import jax

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate.batches import Budget
from maskcl_jax.evaluate.session import Session
from maskcl_jax.training import checkpoint, optimizer, sharding
from maskcl_jax.training.distributed import StopSignal
from maskcl_jax.training.logging import LiveLine
from maskcl_jax.training.throughput import Meter, Throughput


class Trainer(Protocol):
    """What is trained. Both functions are pure; `variables` are the encoder's, which stay."""

    def new_state(self, key: jax.Array, variables: Any) -> Any:
        """The state at step 0, a pytree of arrays."""

    def step(
        self, state: Any, variables: Any, batch: dict[str, jax.Array], number: int
    ) -> tuple[Any, dict[str, jax.Array]]:
        """One step: (state, metrics)."""


def fit(session: Session, trainer: Trainer, budget: Budget, batches: Callable[[int], Any]) -> Any:
    """Trains, going on from the newest checkpoint of this evaluation. A signal saves and leaves, as in training.

    Args:
        session: The evaluation; checkpoints lie in its folder, under its name.
        trainer: State and step.
        budget: How long.
        batches: First step -> iterator over batches of this process, with `close`.

    Returns:
        The state after the last step.

    Raises:
        UserError: Where the newest checkpoint is of other training images, labels or batches.
        Diverged: Where a loss is not finite.
    """
    s, total = session.settings, budget.total_steps
    save_every = round(s.checkpoint_every_epochs * budget.steps_per_epoch)  # 0: at the end only
    replicated, variables = sharding.replicated(session.mesh), session.encoder.variables
    live = LiveLine(total, every_steps=10, every_seconds=10.0, quiet=jax.process_index() != 0)
    shortened = optimizer.shortened_warmup(s, total_steps=total, steps_per_epoch=budget.steps_per_epoch)
    if shortened:
        live.say(shortened)
    new_state = jax.jit(trainer.new_state, out_shardings=replicated)
    facts = session.facts("train") | {"batch_size": budget.batch_size, "total_steps": total}
    folder = session.folder / session.name
    with contextlib.ExitStack() as stack:
        remedy = f"another version made it: remove {folder} to begin the evaluation again"
        checkpoints = checkpoint.Checkpoints(str(folder), keep_last=1, remedy=remedy)
        stack.enter_context(contextlib.closing(checkpoints))
        if difference := checkpoints.data_difference(facts):
            raise UserError(
                f"this evaluation was begun on other data, weights or devices ({difference}): give the same, or "
                f"remove {folder} to begin it again"
            )
        state, start = restored_or_new(checkpoints, new_state, (jax.random.key(s.seed), variables), live.say)
        if start:
            live.say(f"resumed from step {start}")
            if not checkpoints.keeps_data():
                live.say(f"warning: {folder} does not say of which data it is: if they have changed, remove it")
        step_fn = jax.jit(trainer.step, donate_argnums=0, out_shardings=(replicated, replicated))
        rate, meter = Throughput(budget.batch_size), Meter()
        feed = stack.enter_context(contextlib.closing(batches(start)))

        def report(row: tuple[int, dict[str, float]] | None) -> None:
            if row is not None:
                live.update(*row, images_per_second=rate.images_per_second(), eta=rate.eta(total - row[0]))

        stop = stack.enter_context(StopSignal())
        for number in range(start, total):
            state, values = step_fn(state, variables, sharding.put(next(feed), session.mesh), number)
            report(meter.push(number + 1, values))
            rate.step()
            due = number + 1 == total or (save_every and (number + 1) % save_every == 0)
            stopping = stop.due(number + 1)
            if due or stopping:
                report(meter.flush())
                checkpoints.save(number + 1, state, s, facts)
            if stopping:
                live.say(f"stopped by {stop.signal.name}: step {number + 1} is saved; the same command goes on there")
                raise SystemExit(128 + stop.signal)
    return state


def restored_or_new(
    checkpoints: checkpoint.Checkpoints, new_state: Callable, arguments: tuple, say: Callable[[str], None]
) -> tuple[Any, int]:
    """(the newest checkpoint's state, its step), or (a new state, 0) where there is none, or only a damaged one."""
    shapes = jax.eval_shape(new_state, *arguments)
    replicated = sharding.replicated(sharding.create_mesh())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes)
    state: Any = checkpoints.restore_newest(abstract, say, move=True, or_none=True)
    return (new_state(*arguments), 0) if state is None else (state, checkpoints.latest() or 0)
