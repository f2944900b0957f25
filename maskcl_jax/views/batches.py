"""Batches under construction, as ingredients see them: on the host with numpy, in the jitted step with jax.numpy."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.views.base import Batch, View
from maskcl_jax.views.randomness import per_example


class HostBatch(Batch):
    """Some examples of a training split. Their numbers are a function of (seed, stream, epoch, example index) only.

    Attributes, besides those of `Batch`:
        indices: (B,) int64, which examples.
    """

    xp = np

    def __init__(self, views: Sequence[View], *, seed: int, epoch: int, indices: np.ndarray):
        super().__init__(views)
        self.seed, self.epoch, self.indices = seed, epoch, indices

    def generators(self, stream: str) -> Iterator[np.random.Generator]:
        """One generator an example. The object is the same each time: draw from it before going on to the next."""
        return per_example(self.seed, stream, epoch=self.epoch, indices=self.indices)

    def uniform(self, stream: str, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> np.ndarray:
        """(B, *shape) numbers in [0, 1)."""
        numbers = np.empty((len(self.indices), int(np.prod(shape))), dtype)
        for row, generator in zip(numbers, self.generators(stream), strict=True):
            generator.random(out=row, dtype=dtype)
        return numbers.reshape(-1, *shape)

    def integers(self, stream: str, high: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """(B, *shape) int32 in 0..high - 1."""
        draws = [generator.integers(0, high, size=shape) for generator in self.generators(stream)]
        return np.array(draws, np.int32).reshape(-1, *shape)


class DeviceBatch(Batch):
    """The images of one step, inside the compiled program. Their numbers are a function of (key, stream) only."""

    xp = jnp

    def __init__(self, views: Sequence[View], *, key: jax.Array, size: int):
        super().__init__(views)
        self.key, self.size = key, size

    def uniform(self, stream: str, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> jax.Array:
        """(B, *shape) numbers in [0, 1), float32."""
        del dtype
        number = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=4).digest(), "little")
        return jax.random.uniform(jax.random.fold_in(self.key, number), (self.size, *shape))

    def integers(self, stream: str, high: int, shape: tuple[int, ...] = ()) -> jax.Array:
        """(B, *shape) int32 in 0..high - 1."""
        return jnp.minimum(jnp.floor(self.uniform(stream, shape) * high), high - 1).astype(jnp.int32)
