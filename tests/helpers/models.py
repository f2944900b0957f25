"""Small networks for tests, parameters for them, and how equal their gradients are."""

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.models.vit import ViT


def vit(**fields):
    """A small ViT."""
    return ViT(**{"image_size": (16, 24), "channels": 3, "patch_size": 8, "width": 64, "depth": 2, "heads": 4} | fields)


def noise(shapes, *, center=0.0, scale=0.2, seed=0):
    """Arrays of the shapes of a tree: no compilation, and no zeros or ones, which hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(center + scale * rng.standard_normal(s.shape), s.dtype), shapes)


def assert_equal_gradients(a, b):
    """The noise of float32 sums in another order; measured: up to 2.8e-6."""
    np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 + 1e-5 * np.sqrt(np.mean(np.float64(b) ** 2)))


def assert_equal_but_for_rounding(a, b):
    """Float32 noise grows with an array's scale: values of 300 are rounded to 3e-5."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * (1 + np.sqrt(np.mean(np.float64(b) ** 2))))
