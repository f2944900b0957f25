"""How the time of a MAE encoder, forward and backward, grows with the patches it sees: a line?

    python tests/benchmarks/scaling.py [--batch=8] [--rounds=4]

ViT-S/16 at 224 pixels, float32, on the device that JAX finds; blocks only, of given tokens. Printed: the least time of
the rounds for each mask ratio, and the line through them with the largest distance from it. Matrix products grow with
the tokens; attention grows with their square, but is a small part of a step at these lengths.
"""

import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.config import encoder_size
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops.masking import num_visible

RATIOS = (0.9, 0.75, 0.6, 0.45, 0.3, 0.0)


def seconds(step, *arguments) -> float:
    """How long a step takes."""
    begin = time.perf_counter()
    jax.block_until_ready(step(*arguments))
    return time.perf_counter() - begin


def main() -> None:
    """Prints a line a ratio, and the fit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    model = ViT(image_size=(224, 224), channels=3, **encoder_size("S/16"))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    step = jax.jit(jax.grad(lambda v, tokens: jnp.sum(model.apply(v, tokens, method=ViT.encode) ** 2)))
    counts, times = [], []
    for ratio in RATIOS:
        tokens = jax.random.normal(jax.random.key(1), (arguments.batch, num_visible(196, ratio), model.width))
        jax.block_until_ready(step(variables, tokens))
        counts.append(tokens.shape[1])
        times.append(min(seconds(step, variables, tokens) for _ in range(arguments.rounds)))
        print(f"mask {ratio:.2f}, {counts[-1]:3d} visible: {times[-1]:.3f} s", flush=True)
    x, y = np.asarray(counts), np.asarray(times)
    slope, start = np.polyfit(x, y, 1)
    off = y - (start + slope * x)
    explained = 1 - np.sum(off**2) / np.sum((y - y.mean()) ** 2)
    largest = np.max(np.abs(off) / y)
    print(f"{start:.3f} s + {1e3 * slope:.2f} ms a patch: R2 {explained:.4f}, farthest from the line {largest:.1%}")


if __name__ == "__main__":
    main()
