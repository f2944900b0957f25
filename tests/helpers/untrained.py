"""Runs that were never trained: what exporting, importing and evaluating are tested on."""

import functools

import jax
import numpy as np

from helpers.tiny import filled, tiny
from maskcl_jax.methods import create
from maskcl_jax.training import checkpoint, optimizer, run_folder, train_state
from maskcl_jax.training import run as run_lib


def write_run(workdir, name: str, **fields) -> None:
    """The folder of `made(name, **fields)`."""
    save_run(workdir, made(name, **fields))


def save_run(workdir, run: run_lib.Run) -> None:
    """The folder of a run: its config, and one checkpoint."""
    run_folder.claim(str(workdir), run.config)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(run.step, run.state)
    checkpoints.close()


@functools.lru_cache(maxsize=4)  # some are large
def made(name: str, **fields) -> run_lib.Run:
    """A tiny run of noise at step 7, whose target differs from its online part. One mean and std, if not RGB."""
    moments = {"data.mean": (0.4,), "data.std": (0.3,)} if fields.get("data.channels", 3) != 3 else {}
    return run_of(tiny(name, **moments, **fields))


def run_of(config) -> run_lib.Run:
    """The same of any config. In numpy: JAX would compile a program for every shape."""
    method = create(config)
    params, model_state = jax.tree_util.tree_map_with_path(scaled, filled(method))
    moved = jax.tree.map(lambda leaf: np.asarray(leaf * 0.75, leaf.dtype), (params, model_state))
    tx = optimizer.create(config, lambda step: 0.1, frozen=method.frozen)
    state = train_state.TrainState(
        step=np.asarray(7, np.int32),
        params=params,
        target_params=method.target_params(moved[0]),
        model_state={name: tree if name == "batch_stats" else moved[1][name] for name, tree in model_state.items()},
        opt_state=zeros(tx.init, params),
    )
    return run_lib.Run(config, method, jax.device_put(state), f"runs/{config.method.name}")


def zeros(function, *arguments):
    """What a function returns, but zeros."""
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(function, *arguments))


def scaled(path, leaf) -> np.ndarray:
    """A leaf of `filled`, kernels as large as initial values are: wide networks neither explode nor fade."""
    value = np.asarray(leaf)
    if path[-1].key != "kernel":
        return value
    return value * np.float32(10 / np.sqrt(np.prod(value.shape[:-1])))


def arrays(tree) -> dict[str, np.ndarray]:
    """{"encoder/cls_token": ..., ...} of nested dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
