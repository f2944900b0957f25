"""Masks over the cells of an image: which cells are salient, how many of each kind are hidden, and which.

One rule for host and device: the functions take `xp`, numpy or jax.numpy, and compute in float32 on both.
Source: Chin et al. 2024 (poster, and joycenerd/Saliency-Guided-Masking-for-ConvNets). Its released `localize` looks up
a row-wise sorted map at unsorted cells, so that the salient cells of a row lie at its right end; here every cell keeps
its place. Its counts of -1 (masking almost all background) are 0 here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray  # on the device or on the host


def threshold(activation: Array, spread: float, xp: Any = jnp) -> Array:
    """mean - spread * std of every map (B, G, G), population std: (B,). Cells from here on are salient."""
    lowest = activation.min(axis=(1, 2))
    # Measured from the lowest cell: the std of a constant map is then zero, and all of it is salient.
    above = activation - lowest[:, None, None]
    return lowest + above.mean(axis=(1, 2)) - xp.float32(spread) * above.std(axis=(1, 2))


def foreground(activation: Array, spread: float, xp: Any = jnp) -> Array:
    """(B, G, G) bool: which cells are salient ("relaxed SCDA": no largest component, and below the mean too)."""
    return activation >= threshold(activation, spread, xp)[:, None, None]


def counts(
    num_foreground: Array, ratio: Array, total: int, *, background: bool, cap: tuple[float, float] | None, xp: Any = jnp
) -> tuple[Array, Array]:
    """(salient, other) cells to hide at a mask ratio, both int32, of any one shape.

    The same fraction of both kinds: round(ratio * salient) of the salient, and of the others what is left of
    floor(ratio * total), at least none; without `background`, none. cap: (from, to): where ratio * salient / total
    reaches `from`, it counts as `to`.
    """
    share = xp.asarray(ratio, xp.float32) * num_foreground / xp.float32(total)
    if cap is not None:
        share = xp.where(share >= xp.float32(cap[0]), xp.float32(cap[1]), share)
    salient = xp.round(share * xp.float32(total)).astype(xp.int32)
    if not background:
        return salient, xp.zeros_like(salient)
    whole = xp.floor(xp.asarray(ratio, xp.float32) * total).astype(xp.int32)
    return salient, xp.maximum(whole - salient, 0)


def choose(
    activation: Array,
    noise: Array,
    ratio: Array,
    *,
    spread: float,
    background: bool,
    cap: tuple[float, float] | None,
    xp: Any = jnp,
) -> Array:
    """Which cells to hide: (B, G, G, C) bool, True where hidden.

    activation: (B, G, G). noise: (B, G, G, C) uniform in [0, 1): the cells of each kind with the smallest are hidden,
    in every channel its own where the noise differs. ratio: (B,). For the rest see `counts`.
    """
    b, g, _, c = noise.shape
    salient = foreground(activation, spread, xp).reshape(b, g * g, 1)
    # Salient cells first, each kind in the order of its noise: one ranking serves both.
    key = noise.reshape(b, g * g, c) + xp.float32(2.0) * ~salient
    rank = xp.argsort(xp.argsort(key, axis=1, stable=True), axis=1, stable=True)
    found = salient.sum(axis=1, dtype=xp.int32)
    hidden_salient, hidden_other = (
        n[:, None] for n in counts(found, xp.asarray(ratio)[:, None], g * g, background=background, cap=cap, xp=xp)
    )
    hidden = xp.where(salient, rank < hidden_salient, rank - found[:, None] < hidden_other)
    return hidden.reshape(b, g, g, c)


def to_pixels(cells: jax.Array, size: tuple[int, int]) -> jax.Array:
    """(B, G, G, C) -> (B, H, W, C); G divides H and W."""
    height, width = size
    return jnp.repeat(jnp.repeat(cells, height // cells.shape[1], axis=1), width // cells.shape[2], axis=2)


def in_window(window: jax.Array, size: tuple[int, int]) -> jax.Array:
    """(B, H, W, 1) bool: the pixels inside of windows (B, 4): top, left, height, width."""
    top, left, height, width = (window[:, i, None] for i in range(4))
    y, x = jnp.arange(size[0])[None], jnp.arange(size[1])[None]
    down, across = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return (down[:, :, None] & across[:, None, :])[..., None]


def hidden_pixels(cells: jax.Array, window: jax.Array, size: tuple[int, int], *, keep_window: bool) -> jax.Array:
    """(B, H, W, C) bool, True where hidden: a window (keep_window: all but the window) or, where it is empty, cells."""
    focal = (window[:, 2] > 0)[:, None, None, None]
    inside = in_window(window, size)
    return jnp.where(focal, ~inside if keep_window else inside, to_pixels(cells, size))


def heat(activation: jax.Array, size: tuple[int, int]) -> jax.Array:
    """(B, G, G) -> (B, H, W, 3) in 0..1: blue the lowest cell of a map, over white, to red, the highest."""
    low, high = activation.min(axis=(1, 2), keepdims=True), activation.max(axis=(1, 2), keepdims=True)
    level = ((activation - low) / jnp.maximum(high - low, 1e-12))[..., None]
    colors = jnp.concatenate([2 * level, 2 - 2 * jnp.maximum(level, 1 - level), 2 - 2 * level], axis=-1)
    return to_pixels(jnp.clip(colors, 0.0, 1.0), size)
