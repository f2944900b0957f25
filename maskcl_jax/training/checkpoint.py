"""Orbax checkpoints: saving, restoring, and what to do with a damaged one.

Orbax writes a checkpoint beside its place and renames it when it is whole, so a killed run leaves the last whole one.
"""

import errno
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError, first_line
from maskcl_jax.training import checkpoint_metadata
from maskcl_jax.training.train_state import TrainState


class Checkpoints:
    """The checkpoints of one run. All processes call every method.

    Beside the state, a checkpoint keeps the config, a checksum of every array, the machines it was made on and the
    facts of the data (`Source.facts`): see `checkpoint_metadata`.
    """

    def __init__(self, workdir: str, *, keep_last: int = 2, keep_every: int = 0, remedy: str = ""):
        """Opens the folder `checkpoints` of a run.

        Args:
            workdir: The run's folder.
            keep_last: So many of the newest stay.
            keep_every: Every checkpoint at a multiple of it stays, too; 0 for none.
            remedy: What to do about a checkpoint of another architecture; default: that of runs.
        """
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self.keep_last, self.keep_every = keep_last, keep_every
        self.remedy = remedy or "use the config it was made with, or another --workdir"
        self.manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        """Orbax's manager of the checkpoints that are there."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep_last,
            keep_period=self.keep_every or None,
            lightweight_initialize=True,  # else it reads all metadata, and fails where one is damaged
        )
        handlers = {"state": ocp.StandardCheckpointHandler()}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state: TrainState, config: Any = None, data: Mapping[str, Any] | None = None) -> None:
        """Starts saving in the background; the state's arrays are copied before this returns."""
        if step in self.manager.all_steps():
            return
        kept = machine_counts() | {
            "checksums": checksums(state),
            "config": config_lib.flat(config) if config is not None else None,
            "data": dict(data) if data is not None else None,
        }
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        self.manager.save(step, args=args, custom_metadata=checkpoint_metadata.with_digest(kept))

    def latest(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self.manager.latest_step()

    def keeps_data(self) -> bool:
        """Whether the newest checkpoint keeps the facts of the data."""
        return checkpoint_metadata.newest(self.folder).get("data") is not None

    def data_difference(self, facts: Mapping[str, Any]) -> str:
        """In which figures the data differ from those of the newest checkpoint.

        Args:
            facts: `Source.facts`, and further figures that must be equal.

        Returns:
            Both figures in words; "" where they are equal, and where there is no checkpoint or it keeps none.
        """
        before = checkpoint_metadata.newest(self.folder).get("data")
        return "" if before is None else checkpoint_metadata.difference_of(before, facts)

    def check_data(self, facts: Mapping[str, Any], *, accept: bool) -> None:
        """Compares the data with those of the newest checkpoint.

        Args:
            facts: `Source.facts`.
            accept: Whether a difference is meant (`config.data.accept_changes`).

        Raises:
            UserError: The data differ: the length of an epoch, and with it the learning rate, would change.
        """
        if not accept and (difference := self.data_difference(facts)):
            raise UserError(
                f"the run was started on other data ({difference}): give the same data or another --workdir, or set "
                "data.accept_changes=True to go on with these"
            )

    def made_on(self) -> dict[str, int]:
        """`machine_counts` when the newest checkpoint was made; {} where there is none, or it does not say."""
        kept = checkpoint_metadata.newest(self.folder)
        return {name: kept[name] for name in machine_counts() if name in kept}

    def restore_newest(
        self, abstract_state: TrainState, say: Callable[[str], None], *, move: bool = False, or_none: bool = False
    ) -> TrainState | None:
        """The state of the newest checkpoint that can be read; None where there is no checkpoint.

        Args:
            abstract_state: See `restore`.
            say: Is given a line for each damaged checkpoint.
            move: Whether to move a damaged one aside, so that the run can save that step again.
            or_none: Whether to return None, instead of refusing, where none of the checkpoints can be read.

        Raises:
            UserError: None of the checkpoints can be read, or the newest is of another architecture. In a run of
                several processes also where the newest is damaged.
        """
        steps, state = sorted(self.manager.all_steps(), reverse=True), None
        damaged: dict[int, Damaged] = {}
        for step, older in itertools.zip_longest(steps, steps[1:]):
            try:
                state = self.restore(abstract_state, step)
                break
            except Damaged as error:
                damaged[step] = error
                if jax.process_count() > 1:
                    then = "starts from step 0" if older is None else f"goes on from step {older}"
                    raise UserError(f"{error}: move that folder elsewhere, and the same command {then}") from None
                if older is None and not or_none:
                    newest = next(iter(damaged.values()))
                    raise UserError(
                        f"no checkpoint of this run can be read: {newest}; use another --workdir, or a copy"
                    ) from None
                then = (
                    "there is none before it, so this starts from step 0"
                    if older is None
                    else "the checkpoint before it is used"
                )
                say(f"WARNING: {error}: {then}")
        if move and damaged:
            for step in damaged:
                self._move_aside(step)
            self.manager.close()
            self.manager = self._open()
        return state

    def _move_aside(self, step: int) -> None:
        """Renames a checkpoint `damaged-STEP`, or `damaged-STEP-2` and so on where there is one."""
        names = itertools.chain([f"damaged-{step}"], (f"damaged-{step}-{number}" for number in itertools.count(2)))
        place = next(self.folder / name for name in names if not (self.folder / name).exists())
        os.replace(self.folder / str(step), place)

    def restore(self, abstract_state: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (default: the newest), placed as `abstract_state` says (shapes, dtypes, shardings).

        Raises:
            Damaged: Files are cut, missing or overwritten.
            UserError: The checkpoint holds another architecture, or cannot be read for a reason that may pass.
        """
        step = self.latest() if step is None else step
        where = self.folder / str(step)
        kept = self._read(where, lambda: checkpoint_metadata.read(where))
        saved = self._read(where, lambda: self.manager.item_metadata(step)["state"])
        if saved is None:
            raise Damaged(f"checkpoint {where} is damaged (it holds no state)")
        old = "target_state" in saved
        abstract = to_old_layout(abstract_state) if old else abstract_state
        compare_shapes(shapes(saved), shapes(abstract), where, self.remedy)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = self._read(where, lambda: self.manager.restore(step, args=args)["state"])
        state = from_old_layout(state, abstract_state) if old else state
        before = kept.get("checksums")
        if before is not None and before != checksums(state):
            raise Damaged(f"checkpoint {where} is damaged (its arrays are not those that were saved)")
        return state

    def _read(self, where: pathlib.Path, read: Callable[[], Any]) -> Any:
        """Calls `read`, and says in one line why a checkpoint cannot be read."""
        try:
            return read()
        except (PermissionError, TimeoutError, ConnectionError) as error:
            raise UserError(
                f"checkpoint {where} cannot be read ({first_line(error, 200)}): see to the rights or the connection, "
                "then start again"
            ) from None
        except OSError as error:
            if error.errno not in (None, errno.ENOENT, errno.EINVAL, errno.ENOTDIR, errno.EISDIR):
                raise UserError(f"checkpoint {where} cannot be read ({first_line(error, 200)}): start again") from None
            raise Damaged(f"checkpoint {where} is damaged ({first_line(error, 200)})") from None
        except Exception as error:  # orbax and tensorstore raise a dozen types
            raise Damaged(f"checkpoint {where} is damaged ({first_line(error, 200)})") from None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


class Damaged(UserError):
    """The files of a checkpoint are not those that were written."""


@jax.jit
def _sums(state):
    """Per array the sum of its bits as integers, modulo 2^32: the same however it is split over devices."""

    def add(leaf):
        bits = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[bits.dtype.itemsize]
        return jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jnp.stack([add(leaf) for leaf in jax.tree.leaves(state)])


def checksums(state: Any) -> list[int]:
    """One number per array of a state, or of any pytree, in the order of its leaves."""
    return np.asarray(_sums(state)).tolist()


def to_old_layout(state: TrainState) -> dict[str, Any]:
    """Returns a state as checkpoints held it before `model_state` was the method's own dict.

    There BatchNorm statistics were `model_state["batch_stats"]` and `target_state["batch_stats"]`, and `queue` a field.
    """
    own = state.model_state
    stats, target_stats = own.get("batch_stats"), own.get("target_batch_stats")
    return {
        "step": state.step,
        "params": state.params,
        "target_params": state.target_params,
        "model_state": {"batch_stats": stats} if stats else {},
        "target_state": {"batch_stats": target_stats} if target_stats else None,
        "queue": own.get("queue"),
        "opt_state": state.opt_state,
    }


def from_old_layout(old: dict[str, Any], like: TrainState) -> TrainState:
    """The inverse of `to_old_layout`; like: has the names that the method's state consists of."""
    own = {
        "batch_stats": old["model_state"].get("batch_stats", {}),
        "target_batch_stats": (old["target_state"] or {}).get("batch_stats", {}),
        "queue": old["queue"],
    }
    return TrainState(
        step=old["step"],
        params=old["params"],
        target_params=old["target_params"],
        model_state={name: own[name] for name in like.model_state},
        opt_state=old["opt_state"],
    )


def machine_counts() -> dict[str, int]:
    """{processes, devices} of this run."""
    return {"processes": jax.process_count(), "devices": jax.device_count()}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"params/encoder/cls_token": (1, 1, 128), ...} of anything whose leaves have shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key_name(k) for k in path): tuple(leaf.shape) for path, leaf in leaves}


def key_name(key: Any) -> str:
    """One step of a tree path as a bare word: orbax returns dicts and lists where we hold tuples and structs."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def compare_shapes(saved: dict, wanted: dict, where: Any, remedy: str) -> None:
    """Raises UserError naming the first few arrays that differ in name or shape."""
    differing = [
        f"{name} {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"checkpoint {where} is of another architecture: {'; '.join(differing[:3])}{more}: {remedy}")
