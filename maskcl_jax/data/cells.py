"""Masks over the cells of a ConvNet's view, drawn on the host, one for every image."""

import numpy as np

from maskcl_jax.data import saliency
from maskcl_jax.data.randomness import per_example
from maskcl_jax.ops import cells
from maskcl_jax.views import CellRule, View

DRAWS = 5  # focal?, channel-wise?, ratio, window down and across; the noise of the cells follows


def draw(view: View, images: np.ndarray, *, seed: int, epoch: int, indices: np.ndarray, maps=None) -> dict:
    """The activation and the cell masks of a batch for one view, as `maskcl_jax.views` says; empty without any.

    images: (B, H, W, C) uint8, the view as the batch holds it. maps: the `SalientMaps` of provider "maps", of this run.
    """
    m = view.cells
    if m is None:
        return {}
    if m.provider == "maps":
        activation = maps.of(view, seed=seed, epoch=epoch, indices=indices)
    else:
        activation = saliency.activation(images, m.grid, m.provider)
    batch = {view.key("activation"): activation}
    for rule in m.rules:
        batch |= _masks(rule, activation, m.spread, view.size, seed=seed, epoch=epoch, indices=indices)
    return batch


def _masks(rule: CellRule, activation, spread: float, size, *, seed, epoch, indices) -> dict:
    uniform = np.empty((len(indices), draws(rule, activation.shape[1])), np.float32)
    generators = per_example(seed, f"cells/{rule.name}", epoch=epoch, indices=indices)
    for row, generator in zip(uniform, generators, strict=True):
        generator.random(out=row, dtype=np.float32)
    return of_noise(rule, activation, spread, size, uniform)


def draws(rule: CellRule, grid: int) -> int:
    """Uniform numbers that one mask of one image is made from."""
    return DRAWS + grid * grid * rule.channels


def of_noise(rule: CellRule, activation, spread: float, size, uniform, xp=np) -> dict:
    """The entries of one mask that (B, `draws`) uniform numbers make; xp: numpy or jax.numpy."""
    grid = activation.shape[1]
    focal, channelwise, share, *corner = uniform[:, :DRAWS].T
    noise = uniform[:, DRAWS:].reshape(-1, grid, grid, rule.channels)
    noise = xp.where((channelwise < rule.channelwise_p)[:, None, None, None], noise, noise[..., :1])
    ratio = np.float32(rule.ratio[0]) + np.float32(rule.ratio[1] - rule.ratio[0]) * share
    window = _windows(rule, size, xp.stack(corner, axis=1), xp) * (focal < rule.focal_p)[:, None]
    hidden = cells.choose(activation, noise, ratio, spread=spread, background=rule.background, cap=rule.cap, xp=xp)
    hidden = hidden & (window[:, 2] == 0)[:, None, None, None]
    batch = {f"{rule.name}_cells": hidden, f"{rule.name}_window": window}
    if rule.redraw:
        batch |= {f"{rule.name}_noise": noise, f"{rule.name}_ratio": ratio}
    return batch


def _windows(rule: CellRule, size: tuple[int, int], corner, xp):
    """(B, 4) int32, the corner of each uniform over where the window fits. corner: (B, 2) in [0, 1)."""
    room = np.array(size) - rule.window
    start = xp.minimum(xp.floor(corner * (room + 1)), room)
    return xp.concatenate([start, xp.broadcast_to(xp.asarray(rule.window), start.shape)], axis=1).astype(np.int32)
