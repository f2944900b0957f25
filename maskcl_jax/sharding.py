"""The mesh, where arrays lie on it, and the road of a host batch onto the devices."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maskcl_jax.errors import UserError

DATA = "data"


def create_mesh(devices=None) -> Mesh:
    """All devices of all processes, or those given, on one `data` axis.

    Auto axes: JAX's default (Explicit) rejects the product of two batch-sharded matrices that every contrastive
    loss takes.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension split over the `data` axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(batch_size: int, mesh: Mesh, *, field: str = "batch_size") -> None:
    """Raises UserError where a batch cannot be split evenly over the devices."""
    devices = mesh.shape[DATA]
    if batch_size < 1 or batch_size % devices:
        fitting = max(devices, batch_size // devices * devices)
        raise UserError(
            f"{field}={batch_size} is not divisible by the {devices} devices: use a multiple, for instance {fitting}"
        )


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a host batch -> global arrays, split over the devices along the first dimension."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
