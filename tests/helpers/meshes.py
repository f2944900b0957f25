"""A tiny run on any mesh of the devices, for tests that compare meshes."""

import json
import pathlib

import jax
import numpy as np

from helpers.tiny import colourless, filled, tiny
from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.methods import create as create_method
from maskcl_jax.training import checkpoint, optimizer, sharding, train_state
from maskcl_jax.training.step import make_train_step

MESHES = {"one": (1, 1, 1), "data": (8, 8, 1), "fsdp": (8, 1, 8), "both": (8, 4, 2)}  # devices, data, fsdp
STEPS = 5


class Job:
    """A tiny run on one mesh: its state, its step, its batches."""

    def __init__(self, c, devices: int, data: int, fsdp: int):
        c.mesh.data, c.mesh.fsdp = data, fsdp
        self.c, self.method = c, create_method(c)
        self.mesh = sharding.create_mesh(c.mesh, jax.devices()[:devices])
        # Adam divides a gradient by its own size. Before a BatchNorm a bias has none but rounding: eps hides that.
        c.optimizer.eps = 0.01
        rate = c.optimizer.base_lr * c.batch_size / 256  # the recipe's; far above it rounding grows tenfold a step
        tx = optimizer.create(c, lambda step: rate, frozen=self.method.frozen)
        init = create_method(c)
        self.method.init = lambda key: filled(init)
        self.new = lambda: train_state.create(self.method, tx, jax.random.key(0))
        self.shapes = jax.eval_shape(self.new)
        self.placed = sharding.state_sharding(self.shapes, self.mesh)
        numbers = {"seed": 0, "total_steps": 10, "accumulation": c.accumulation}
        step = make_train_step(self.method, tx, lambda step: rate, placed=self.placed, **numbers)
        self.step = jax.jit(step, out_shardings=(self.placed, sharding.replicated(self.mesh)))

    def begin(self):
        return jax.device_put(self.new(), self.placed)

    def go(self, state, start: int, steps: int):
        """(state after so many steps, the last one's metrics)."""
        c = self.c
        options = {"data_config": c.data, "batch_size": c.batch_size, "seed": 0, "start_step": start}
        with pipeline.train_batches(open_source(c.data), self.method.views, **options) as batches:
            for _ in range(steps):
                state, metrics = self.step(state, sharding.put(next(batches), self.mesh))
        return state, metrics


def leaves_of(tree) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def write_steps(folder: str, name: str, *labels: str) -> None:
    """Five steps on some of the meshes, and what the last one's checkpoint is on half the devices; a file each."""
    sharding.MIN_SIZE = 64  # nearly everything is split: the test is about that
    folder, facts = pathlib.Path(folder), {}
    for label in labels:
        job = Job(tiny(name, **colourless(name)), *MESHES[label])
        state, metrics = job.go(job.begin(), 0, STEPS)
        np.savez(folder / f"{label}.npz", **leaves_of((state, metrics)))
        lying = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
        assert lying == sharding.bytes_per_device(job.shapes, job.placed)
        facts[label] = lying
    checkpoints = checkpoint.Checkpoints(folder / "run")
    checkpoints.save(STEPS, state)
    checkpoints.close()
    checkpoints = checkpoint.Checkpoints(folder / "run")
    half = Job(tiny(name, **colourless(name)), 4, 1, 4)
    restored = checkpoints.restore(sharding.with_sharding(half.shapes, half.placed))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == half.placed
    facts["made_on"] = checkpoints.made_on()
    checkpoints.close()
    (folder / "facts.json").write_text(json.dumps(facts))
