"""Networks by name: `params` and `batch_stats` of a method are dicts with one entry per network."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Stats = dict[str, Any]  # {network: its BatchNorm statistics}


def init_heads(heads: Mapping[str, tuple[nn.Module, int]], rng: jax.Array) -> tuple[dict[str, Any], Stats]:
    """Returns (params, batch_stats) of heads {name: (module, width of its input)}."""
    params, stats = {}, {}
    for (name, (head, width)), key in zip(heads.items(), jax.random.split(rng, len(heads)), strict=True):
        variables = head.init(key, jnp.zeros((2, width)), train=True)
        params[name] = variables["params"]
        if "batch_stats" in variables:
            stats[name] = variables["batch_stats"]
    return params, stats


def apply_in_training(
    network: nn.Module, name: str, params: Mapping[str, Any], stats: Stats, x: jax.Array
) -> tuple[jax.Array, Stats]:
    """Applies the network `name` in training mode.

    Args:
        network: The module.
        name: Of its parameters in `params` and, if it has BatchNorm, of its statistics in `stats`.
        params: Of all networks.
        stats: BatchNorm statistics of all networks.
        x: Its input.

    Returns:
        Its output, and `stats` after the batch.
    """
    if name not in stats:
        return network.apply({"params": params[name]}, x, train=True), stats
    variables = {"params": params[name], "batch_stats": stats[name]}
    out, updated = network.apply(variables, x, train=True, mutable=["batch_stats"])
    return out, {**stats, name: updated["batch_stats"]}
