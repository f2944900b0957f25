"""What each hand-written gradient of models/kernels.py gains: steps with and without it, paired in one process.

    python tests/benchmarks/kernels.py --config=configs/mae.py:embedded [--rounds=20]

Every round runs one step of each variant: all of them ("fused"), none ("plain"), and all but one. Printed for each: the
median over the rounds of its time over that of "fused", minus 1, by CPU time, which other load disturbs least, and by
wall-clock time.
"""

import functools
import pathlib
import sys
import time
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import flax.linen as nn
import jax
import numpy as np
from absl import flags

from maskcl_jax import cli
from maskcl_jax.benchmark import modes
from maskcl_jax.models import kernels

CONFIG = cli.define_config()
ROUNDS = flags.DEFINE_integer("rounds", 20, "Steps of each variant that are timed.", 2)

# Name in models/kernels.py -> what flax and JAX offer instead.
PLAIN = {
    "dot_product_attention": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    "LayerNorm": functools.partial(nn.LayerNorm, epsilon=kernels.LAYER_NORM_EPS, use_fast_variance=False),
    "dot_general": jax.lax.dot_general,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class Step:
    """A compiled training step of a config, with `kernels` as given."""

    def __init__(self, config, kind: str):
        config = config.copy_and_resolve_references()
        config.kernels = kind
        program = modes.program_of(config, per_epoch=1000)
        self.compiled = program.compile()
        self.state, self.batch = program.new_state(), program.put(modes.synthetic_batch(config, program.method))

    def seconds(self) -> tuple[float, float]:
        """(CPU time, wall-clock time) of one step."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.process_time() - cpu, time.perf_counter() - wall


def main(argv: list[str]) -> None:
    """Prints a line per variant."""
    steps = {"fused": Step(CONFIG.value, "fused"), "plain": Step(CONFIG.value, "plain")}
    for name, plain in PLAIN.items():
        with mock.patch.object(kernels, name, plain):
            steps[f"without {name}"] = Step(CONFIG.value, "fused")
    times = {name: [] for name in steps}
    for i in range(ROUNDS.value + 2):  # two of them to warm up
        for name in list(steps)[:: 1 if i % 2 else -1]:
            times[name].append(steps[name].seconds())
    times = {name: np.asarray(rows[2:]) for name, rows in times.items()}
    c = CONFIG.value
    print(f"{c.method.name}, preset {c.preset}, batch {c.batch_size}, {c.dtype}, {ROUNDS.value} rounds")
    cpu, wall = np.median(times["fused"], axis=0)
    print(f"fused: {cpu:.3f} s of CPU time, {wall:.3f} s per step, on {jax.devices()[0].device_kind}")
    for name, rows in times.items():
        cpu, wall = np.median(rows / times["fused"], axis=0) - 1
        print(f"{name}: {cpu:+.1%} CPU time, {wall:+.1%} wall-clock time")


if __name__ == "__main__":
    cli.run(main)
