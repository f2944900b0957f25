"""Runs that were never trained: what exporting, importing and evaluating are tested on."""

import jax
import jax.numpy as jnp
import numpy as np
from test_train import filled, tiny

from maskcl_jax import checkpoint, optimizer, train_state
from maskcl_jax.methods import create


def write_run(workdir, name: str, *, step: int = 7, **overrides):
    """The config of a tiny run whose folder holds one checkpoint of noise; its target differs from its online part."""
    config = tiny(name, **overrides)
    save_run(workdir, config, step=step)
    return config


def save_run(workdir, config, *, step: int = 7) -> None:
    """The folder of a run of any config."""
    method = create(config)
    params, model_state = scaled(*filled(method))
    moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(1, leaf.dtype) / 8, (params, model_state))
    state = train_state.TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        target_params=method.target_of(moved[0]),
        model_state=model_state,
        target_state=method.target_state_of(moved[1]),
        queue=method.new_queue(jax.random.key(1)),
        opt_state=optimizer.create(config, lambda step: 0.1, frozen=method.frozen).init(params),
    )
    checkpoint.claim(str(workdir), config)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(step, state)
    checkpoints.close()


def scaled(params, model_state):
    """Noise as large as first values are: wide networks neither explode nor fade."""

    def scale(path, leaf):
        inputs = int(np.prod(leaf.shape[:-1]))
        return leaf * (10 / np.sqrt(inputs)) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(scale, params), model_state


def arrays(tree) -> dict[str, np.ndarray]:
    """{"encoder/cls_token": ..., ...} of nested dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
