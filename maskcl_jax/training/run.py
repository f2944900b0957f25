"""A run read back from its folder: what export and evaluation start from."""

import contextlib
import pathlib
from typing import Any, NamedTuple

import jax
from absl import logging as absl_logging

from maskcl_jax import config as config_lib
from maskcl_jax import methods
from maskcl_jax.errors import UserError, first_line
from maskcl_jax.training import checkpoint, compile_cache, optimizer, run_folder, sharding, train_state


class Run(NamedTuple):
    """A run read back from its folder.

    Attributes:
        config: As the run was started, with the defaults of fields that its version did not have.
        method: Created from it.
        state: Of one checkpoint, replicated.
        workdir: The folder.
    """

    config: Any
    method: methods.Method
    state: train_state.TrainState
    workdir: str

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)


def restore_run(workdir: str, step: int | None = None) -> Run:
    """Reads a run back, its state replicated on this process's devices.

    Args:
        workdir: The run's folder.
        step: Of the checkpoint; default: the newest.

    Raises:
        UserError: There is no run, no checkpoint, or not that one, or it is damaged.
    """
    config = config_lib.unflat(run_folder.read_config(workdir))
    compile_cache.use(config.compile_cache)
    if config.model.get("attention") == "cudnn" and jax.default_backend() != "gpu":
        config.model.attention = "xla"  # the same up to rounding: a run of a GPU can be read anywhere
    folder = pathlib.Path(workdir) / "checkpoints"
    steps = sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())
    if not steps or (step is not None and step not in steps):
        raise UserError(
            f"{folder} holds no checkpoint"
            + (
                f" of step {step}: there are {', '.join(map(str, steps))}"
                if steps
                else ": train first, or give another"
            )
        )
    try:
        method = methods.create(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{workdir}/config.json is of another version: {first_line(error)}") from None
    shapes = abstract_state(config, method)
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        if step is None:
            state = checkpoints.restore_newest(shapes, absl_logging.warning)
        else:
            state = restore_step(checkpoints, shapes, step, others=[other for other in steps if other != step])
    if state is None:
        raise UserError(f"{folder} holds no checkpoint: train first, or give another")
    return Run(config, method, state, workdir)


def restore_step(
    checkpoints: checkpoint.Checkpoints, shapes: train_state.TrainState, step: int, others: list[int]
) -> train_state.TrainState:
    """The state of one step. Raises UserError that names the other steps where it is damaged."""
    try:
        return checkpoints.restore(shapes, step)
    except checkpoint.Damaged as error:
        choice = f"choose another step (there are {', '.join(map(str, others))}), or use" if others else "use"
        raise UserError(f"{error}: {choice} a copy of the run") from None


def abstract_state(config: Any, method: methods.Method) -> train_state.TrainState:
    """Returns shapes, dtypes and shardings of everything that a run saves; no schedule changes them."""
    tx = optimizer.create(config, lambda step: 0.0, frozen=method.frozen)
    shapes = jax.eval_shape(lambda key: train_state.create(method, tx, key), jax.random.key(0))
    placed = sharding.replicated(sharding.create_mesh())
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=placed), shapes)
