"""What the values of a config may be."""

import ml_collections

from maskcl_jax.errors import UserError


def check(config: ml_collections.ConfigDict) -> None:
    """Checks, before anything is built, what no single room can see. Raises UserError."""
    positive = {
        "batch_size": config.batch_size,
        "eval.batch_size": config.eval.batch_size,
        "eval.k": config.eval.k,
        "eval.temperature": config.eval.temperature,
        "data.channels": config.data.channels,
        "accumulation": config.accumulation,
    }
    for field, value in positive.items():
        if value <= 0:
            raise UserError(f"{field}={value} is out of range: it must be greater than 0")
    if config.image_chunks < 0:
        raise UserError(f"image_chunks={config.image_chunks} is out of range: use 1 or more, or 0 for what suits")
    if config.epochs <= 0 and config.total_steps <= 0:
        raise UserError(f"epochs={config.epochs} gives no step: set epochs or total_steps to a positive number")
    if len(config.data.image_size) != 2 or min(config.data.image_size) < 1:
        raise UserError(f"data.image_size={config.data.image_size} is not a size: write (height, width)")
    for field in ("mean", "std"):
        values = config.data[field]
        if len(values) not in (1, config.data.channels):
            raise UserError(
                f"data.{field}={tuple(values)} has {len(values)} values for data.channels={config.data.channels}: "
                "give one for every channel, or one for all"
            )
    for field, value, known in (
        ("dtype", config.dtype, ("float32", "bfloat16")),
        ("optimizer.mu_dtype", config.optimizer.mu_dtype, ("float32", "bfloat16")),
        ("remat", config.remat, ("none", "cheap", "blocks")),
        ("kernels", config.kernels, ("auto", "plain", "fused")),
    ):
        if value not in known:
            raise UserError(f"{field}={value!r} is unknown: use {', '.join(known[:-1])} or {known[-1]}")
