"""What a ConvNet sees where an image is masked, chosen so that no hard edge appears: noise, blur or the mean.

Images (B, H, W, C) float32, normalised. Source: Chin et al. 2024, joycenerd/Saliency-Guided-Masking-for-ConvNets.
"""

import jax.numpy as jnp

from maskcl_jax.ops import color

FULL_SIZE = 224  # pixels: the side for which the paper's code states its kernels


def blur(images, sigma: float, taps: int):
    """Gaussian of `taps` x `taps`, cut off there, the border reflected without repeating the edge pixel."""
    sigmas = jnp.full(len(images), sigma, jnp.float32)
    return color.images_of(color.gaussian_blur(color.planes_of(images), sigmas, radius=taps // 2))


def high_pass(images, sigma: float, taps: int):
    """Images less their blur."""
    return images - blur(images, sigma, taps)


def mean(images):
    """(B, 1, 1, C): the mean of every image and channel."""
    return images.mean(axis=(1, 2), keepdims=True)


def tiled(noise, grid: int):
    """(B, H, W, C) whose every cell of every image is the first one of the first image, as the released code has it."""
    b, height, width, _ = noise.shape
    return jnp.tile(noise[:1, : height // grid, : width // grid], (b, grid, grid, 1))


def kernel_at(side: int, sigma: float, taps: int) -> tuple[float, int]:
    """(sigma, taps) for images of a side, scaled from FULL_SIZE: sigma at least 1, cut off at as many sigmas.

    Our choice, but at FULL_SIZE.
    """
    scaled = max(1.0, sigma * side / FULL_SIZE)
    return scaled, 2 * max(1, round((taps - 1) / 2 / sigma * scaled)) + 1
