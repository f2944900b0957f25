"""The cheapest `remat` that fits into the devices' memory, chosen before anything is compiled.

The estimate of a step's memory on a device: the state, gradients of the parameters, and what the forward pass keeps for
the backward pass. The last is read off the traced step. Only arrays of the computation's dtype count, because XLA
computes the float32 copies of 16-bit arrays again; without remat it does so with more, and KEPT is what is left.
KEPT and MARGIN are set so that the choice is right for the ImageNet configs on TPUs by the peaks of the TPU's compiler
(docs/clusters.md), from which the estimate differs by up to a fifth. On GPUs it was never compared.
"""

from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax import methods
from maskcl_jax.methods import StepContext
from maskcl_jax.performance.devices import find_chip
from maskcl_jax.training import optimizer, sharding, train_state
from maskcl_jax.views.base import batch_shapes

KEPT = {"none": 0.75, "cheap": 1.0}  # of the arrays that JAX keeps
MARGIN = 0.95  # of the memory may be used by the estimate


def with_remat(config: Any, mesh: jax.sharding.Mesh, *, memory: int | None = None) -> Any:
    """Returns the config with a `remat` that is chosen; the config itself if it says which, or memory is unknown.

    Args:
        config: Of a run.
        mesh: The devices.
        memory: Bytes that a program may use on each; default: `usable_memory`. On a CPU it is unknown.

    Raises:
        UserError: The method cannot be created.
    """
    if config.remat != "auto":
        return config
    memory = usable_memory(mesh.devices.flat[0]) if memory is None else memory
    if memory is None:
        return config
    chosen = config.copy_and_resolve_references()
    for remat in KEPT:
        chosen.remat = remat
        if estimate(chosen, mesh) <= MARGIN * memory:
            return chosen
    chosen.remat = "blocks"
    return chosen


def describe(config: Any) -> str:
    """What the first line of a run says of its `remat`; "" without it."""
    return "" if config.remat in ("auto", "none") else f", remat={config.remat}"


def usable_memory(device: jax.Device) -> int | None:
    """Bytes of a device that a program may use; None where that is unknown, as on a CPU."""
    chip = find_chip(device.device_kind)
    if chip is not None and chip.usable_gib is not None:
        return int(chip.usable_gib * 2**30 / chip.devices)
    if device.platform == "cpu":
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


def estimate(config: Any, mesh: jax.sharding.Mesh) -> float:
    """Bytes that a step needs on each device, see the top of this file.

    Args:
        config: Of a run; its `remat` is a key of KEPT.
        mesh: The devices.
    """
    method = methods.create(config, mesh)
    tx = optimizer.create(config, lambda step: 0.0, frozen=method.frozen)
    state = jax.eval_shape(lambda key: train_state.create(method, tx, key), jax.random.key(0))
    placed = sharding.state_sharding(state, mesh)
    held = sharding.bytes_per_device(state, placed) + sharding.bytes_per_device(state.params, placed.params)
    return held + KEPT[config.remat] * kept_bytes(config, method, state) / mesh.size


def kept_bytes(config: Any, method: methods.Method, state: Any) -> int:
    """Bytes of the computation's dtype that the forward pass of a micro-batch keeps, on all devices together."""
    rows = config.batch_size // config.accumulation
    shapes = batch_shapes(method.views, rows, config.data.channels)
    batch = {
        key: jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype)) for key, (shape, dtype) in shapes.items()
    }

    def backward_pass(params, state, batch):
        context = StepContext(state.target_params, state.model_state, jax.random.key(0), jnp.float32(0))
        return jax.vjp(lambda params: method.loss(params, batch, context).loss, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward_pass, state.params, state, batch))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept if leaf.dtype == config.dtype)
