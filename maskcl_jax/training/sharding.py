"""The mesh, where arrays lie on it, and the road of a host batch onto the devices.

Two axes. Over both the batch is split; over `fsdp` the parameters are, too, and with them the optimiser's moments and
the EMA target. BatchNorm's statistics, the queue and the step count lie whole on every device: the first are small,
and of the queue every step reads all and writes rows that lie anywhere.
"""

import functools
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maskcl_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
AXES = (DATA, FSDP)
SPLIT_FIELDS = ("params", "target_params", "opt_state")  # of the train state
# Numbers in an array below which it lies whole on every device: what a split saves is less than the message costs.
# The biases and norms of encoders up to ViT-L are smaller, their matrices larger.
MIN_SIZE = 4096


def create_mesh(sizes=None, devices=None) -> Mesh:
    """All devices of all processes on the axes `data` and `fsdp`.

    sizes: `config.mesh`, with -1 for what the other axis leaves; default: everything on `data`. devices: default all.
    Auto axes: JAX's default (Explicit) rejects the product of two batch-sharded matrices that every contrastive
    loss takes. Raises UserError where the sizes do not multiply to the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = (-1, 1) if sizes is None else (sizes.data, sizes.fsdp)
    return jax.make_mesh(filled(shape, len(devices)), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def filled(shape: tuple[int, int], count: int) -> tuple[int, int]:
    """(data, fsdp) for `count` devices, without -1. Raises UserError where that cannot be."""
    data, fsdp = shape
    known = max(data, 1) * max(fsdp, 1)
    if min(data, fsdp) < -1 or 0 in shape or shape == (-1, -1):
        raise UserError(f"mesh.data={data}, mesh.fsdp={fsdp}: use 1 or more, and -1 for at most one, which is the rest")
    if count % known or (-1 not in shape and known != count):
        raise UserError(
            f"mesh.data={data}, mesh.fsdp={fsdp} does not multiply to the {count} devices: write for instance "
            f"mesh.data=-1 and mesh.fsdp={np.gcd(fsdp, count) if fsdp > 0 else 1}"
        )
    return tuple(count // known if size == -1 else size for size in shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension split over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def split_by_size(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """FSDP's rule: the largest dimension that `fsdp` divides, the last of equals, is split; a small array is not."""
    parts = mesh.shape[FSDP]
    fitting = [i for i, side in enumerate(shape) if side % parts == 0]
    if parts == 1 or not fitting or np.prod(shape) < MIN_SIZE:
        return replicated(mesh)
    longest = max(fitting, key=lambda i: (shape[i], i))
    return NamedSharding(mesh, PartitionSpec(*(FSDP if i == longest else None for i in range(len(shape)))))


def place_state(shapes, mesh: Mesh):
    """Where every array of a train state lies, from its shapes (`jax.eval_shape`): a state of shardings."""
    whole = replicated(mesh)
    everywhere = jax.tree.map(lambda leaf: whole, shapes)
    split = {
        name: jax.tree.map(lambda leaf: split_by_size(leaf.shape, mesh), getattr(shapes, name)) for name in SPLIT_FIELDS
    }
    return everywhere.replace(**split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(leaf, place: NamedSharding):
    """An array that lies as `place` says, whole on every device; its gradient is split again."""
    return jax.lax.with_sharding_constraint(leaf, replicated(place.mesh))


gather.defvjp(
    lambda leaf, place: (gather(leaf, place), None),
    lambda place, _, gradient: (jax.lax.with_sharding_constraint(gradient, place),),
)


def gathered(tree, placed):
    """Parameters to compute with: those that are split are put together where they are used.

    Left to itself the partitioner may move the activations between devices in place of the parameters.
    """
    return jax.tree.map(lambda leaf, place: leaf if place.is_fully_replicated else gather(leaf, place), tree, placed)


def placed_shapes(shapes, placed):
    """Shapes with their places, from which a checkpoint is restored without a whole copy anywhere."""
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, placed)


def bytes_per_device(shapes, placed) -> int:
    """What a state takes on each device."""
    sizes = jax.tree.map(lambda s, p: np.prod(p.shard_shape(s.shape)) * s.dtype.itemsize, shapes, placed)
    return int(sum(jax.tree.leaves(sizes)))


def check_batch(batch_size: int, mesh: Mesh, *, field: str = "batch_size", **parts: int) -> None:
    """Raises UserError where a batch cannot be split evenly over the devices, and each share into all `parts`.

    parts: the fields that split it, by name; 0 counts as 1.
    """
    split = {name: count for name, count in parts.items() if count > 1}
    whole = math.prod([mesh.size, *split.values()])
    if batch_size < 1 or batch_size % whole:
        each = "".join(f" times {name}={count}" for name, count in split.items())
        raise UserError(
            f"{field}={batch_size} is not divisible by the {mesh.size} devices{each}: use a multiple, for instance "
            f"{max(1, batch_size // whole) * whole}"
        )


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a host batch -> global arrays, split over the devices along the first dimension."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
