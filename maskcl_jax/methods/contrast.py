"""What contrastive methods share: checks of their fields, the momentum of the EMA target, metrics."""

from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError, check_choice, check_range
from maskcl_jax.ops import losses


def check_contrast(config: Any) -> None:
    """Raises UserError if temperature, BatchNorm groups or batch leave nothing to contrast."""
    c = config.method
    if c.temperature <= 0:
        raise UserError(f"method.temperature={c.temperature} is out of range: it must be greater than 0")
    group, together = c.bn_group_size, config.batch_size // config.accumulation
    size = f"batch_size={config.batch_size}" + (
        f" / accumulation={config.accumulation}" if config.accumulation > 1 else ""
    )
    if group < 0 or (group and together % group):
        raise UserError(f"method.bn_group_size={group} does not divide {size}")
    if min(together, group or together) < 2:
        raise UserError(f"{size} or method.bn_group_size={group} leaves nothing to contrast with: use at least 2")


def check_target(config: Any) -> None:
    """Raises UserError if the momentum of the EMA target or its schedule is out of range."""
    check_range("method.momentum", config.method.momentum, 0.0, 1.0)
    check_choice("method.momentum_schedule", config.method.momentum_schedule, ["fixed", "cosine"])


def momentum_at(start: float, schedule: str, progress: jax.Array | float) -> jax.Array:
    """The momentum of the EMA target at a fraction `progress` of the run.

    Args:
        start: The momentum at the beginning.
        schedule: "fixed", or "cosine" for half a cosine from `start` to 1.
        progress: 0 to 1.

    Source: facebookresearch/moco-v3, `adjust_moco_momentum` (cosine).
    """
    if schedule == "fixed":
        return jnp.asarray(start, jnp.float32)
    return 1.0 - (1.0 - start) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def metrics(
    loss: jax.Array, accuracy: jax.Array, features: jax.Array, *, candidates: jax.Array | int, scale: float = 1.0
) -> dict[str, jax.Array]:
    """What a contrastive method logs.

    Args:
        loss: The contrastive loss.
        accuracy: How often the positive has the largest logit.
        features: (B, D), whose spread falls when they collapse.
        candidates: Keys that a query chooses from: loss and accuracy are logged beside their chance levels.
        scale: Factor of the cross-entropy in `loss`.
    """
    count = jnp.asarray(candidates, jnp.float32)
    return {
        "contrast_loss": loss,
        "contrast_loss_chance": scale * jnp.log(count),
        "contrast_accuracy": accuracy,
        "contrast_accuracy_chance": 1.0 / count,
        **losses.spread(features),
    }
