"""Pixels as networks take them, and back."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
    """uint8 -> float32 in 0..1. On the device: uint8 is a quarter of the transfer."""
    return images.astype(jnp.float32) / 255.0


def standardize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Images (B, H, W, C) in 0..1 -> (x - mean) / std, one value a channel or one for all."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 images (B, H, W, C) -> float32, (x / 255 - mean) / std."""
    return standardize(to_float(images), mean, std)


def denormalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """The inverse of `standardize`, clipped to 0..1."""
    return jnp.clip(images * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32), 0.0, 1.0)
