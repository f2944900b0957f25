"""The device mesh, how arrays are sharded over it, and how a host batch gets onto the devices.

The mesh has two axes. The batch is split over both; over `fsdp` the parameters are split too, and with them the
optimizer's moments and the EMA target. BatchNorm statistics, the queue and the step are replicated: the first are
small, and every step reads the whole queue and writes rows anywhere in it.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from maskcl_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
AXES = (DATA, FSDP)
SPLIT_FIELDS = ("params", "target_params", "opt_state")  # of the train state
# Arrays with fewer elements are replicated: splitting them saves less than the communication costs. The biases and
# norms of encoders up to ViT-L are smaller, their matrices larger.
MIN_SIZE = 4096


def create_mesh(sizes: Any = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data` and `fsdp` over all devices of all processes.

    Its axes are Auto: JAX's default (Explicit) rejects the product of two batch-sharded matrices that every contrastive
    loss takes.

    Args:
        sizes: `config.mesh`, where -1 takes what the other axis leaves; default: everything on `data`.
        devices: Default: all.

    Raises:
        UserError: The sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = (-1, 1) if sizes is None else (sizes.data, sizes.fsdp)
    return jax.make_mesh(fill_shape(shape, len(devices)), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def fill_shape(shape: tuple[int, int], count: int) -> tuple[int, int]:
    """(data, fsdp) for `count` devices, with -1 replaced. Raises UserError where that is impossible."""
    data, fsdp = shape
    known = max(data, 1) * max(fsdp, 1)
    if min(data, fsdp) < -1 or 0 in shape or shape == (-1, -1):
        raise UserError(f"mesh.data={data}, mesh.fsdp={fsdp}: use 1 or more, and -1 for at most one, which is the rest")
    if count % known or (-1 not in shape and known != count):
        raise UserError(
            f"mesh.data={data}, mesh.fsdp={fsdp} does not multiply to the {count} devices: write for instance "
            f"mesh.data=-1 and mesh.fsdp={np.gcd(fsdp, count) if fsdp > 0 else 1}"
        )
    data, fsdp = (count // known if size == -1 else size for size in shape)
    return data, fsdp


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension split over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def fsdp_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Splits the largest dimension that `fsdp` divides, the last of equal ones; replicates arrays below MIN_SIZE."""
    parts = mesh.shape[FSDP]
    divisible = [i for i, side in enumerate(shape) if side % parts == 0]
    if parts == 1 or not divisible or np.prod(shape) < MIN_SIZE:
        return replicated(mesh)
    longest = max(divisible, key=lambda i: (shape[i], i))
    return NamedSharding(mesh, PartitionSpec(*(FSDP if i == longest else None for i in range(len(shape)))))


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a train state: SPLIT_FIELDS by `fsdp_sharding`, the rest replicated.

    Args:
        shapes: A train state of shapes (`jax.eval_shape`).
        mesh: The device mesh.

    Returns:
        A train state of shardings.
    """
    whole = replicated(mesh)
    everywhere = jax.tree.map(lambda leaf: whole, shapes)
    split = {
        name: jax.tree.map(lambda leaf: fsdp_sharding(leaf.shape, mesh), getattr(shapes, name)) for name in SPLIT_FIELDS
    }
    return everywhere.replace(**split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Replicates an array that is split as `sharding` says; its gradient is split again."""
    return jax.lax.with_sharding_constraint(leaf, replicated(sharding.mesh))


gather.defvjp(
    lambda leaf, sharding: (gather(leaf, sharding), None),
    lambda sharding, _, gradient: (jax.lax.with_sharding_constraint(gradient, sharding),),
)


def gather_params(params: Any, shardings: Any) -> Any:
    """Parameters to compute with: those that are split are replicated where they are used.

    Without it the partitioner may move the activations between devices instead of the parameters.
    """
    return jax.tree.map(lambda leaf, s: leaf if s.is_fully_replicated else gather(leaf, s), params, shardings)


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Shapes with their shardings, from which a checkpoint is restored without a whole copy anywhere."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """Bytes of a state on each device."""
    sizes = jax.tree.map(lambda s, p: np.prod(p.shard_shape(s.shape)) * s.dtype.itemsize, shapes, shardings)
    return int(sum(jax.tree.leaves(sizes)))


def check_batch(
    batch_size: int, mesh: Mesh, *, field: str = "batch_size", parts: Mapping[str, int] | None = None
) -> None:
    """Checks that a batch splits evenly over the devices, and the part of each device further.

    Args:
        batch_size: Images of all devices.
        mesh: The device mesh.
        field: The config field of the batch size, for the message.
        parts: The config fields that split it further, by name; 0 counts as 1.

    Raises:
        UserError: It does not.
    """
    split = {name: count for name, count in (parts or {}).items() if count > 1}
    whole = math.prod([mesh.size, *split.values()])
    if batch_size < 1 or batch_size % whole:
        each = "".join(f" times {name}={count}" for name, count in split.items())
        raise UserError(
            f"{field}={batch_size} is not divisible by the {mesh.size} devices{each}: use a multiple, for instance "
            f"{max(1, batch_size // whole) * whole}"
        )


def put(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a host batch -> global arrays, split over all devices along the first dimension."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
