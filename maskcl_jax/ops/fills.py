"""What a ConvNet sees where an image is masked, chosen so that no hard edge appears: noise, blur or the mean.

Images are (B, H, W, C) float32, normalized.

Source: Chin et al. 2024, joycenerd/Saliency-Guided-Masking-for-ConvNets.
"""

import jax
import jax.numpy as jnp

from maskcl_jax.ops import color

FULL_SIZE = 224  # pixels: the side of the images for which the paper's code states its kernels
FARTHEST = 6.0  # sigmas: what a Gaussian has beyond is less than float32 rounds off


def blur(images: jax.Array, sigma: float, taps: int) -> jax.Array:
    """Gaussian blur with a truncated kernel of `taps` x `taps`; borders are reflected without repeating the edge."""
    sigmas = jnp.full(len(images), sigma, jnp.float32)
    return color.images_of(color.gaussian_blur(color.planes_of(images), sigmas, radius=taps // 2))


def high_pass(images: jax.Array, sigma: float, taps: int) -> jax.Array:
    """Images minus their `blur`."""
    return images - blur(images, sigma, taps)


def mean(images: jax.Array) -> jax.Array:
    """(B, 1, 1, C): the mean of every image and channel."""
    return images.mean(axis=(1, 2), keepdims=True)


def tiled(noise: jax.Array, grid: int) -> jax.Array:
    """Noise (B, H, W, C) -> the same shape, every cell being the first cell of the first image, as in the paper's code.

    grid: Cells along each side.
    """
    b, height, width, _ = noise.shape
    return jnp.tile(noise[:1, : height // grid, : width // grid], (b, grid, grid, 1))


def kernel_at(side: int, sigma: float, taps: int) -> tuple[float, int]:
    """Scales a blur kernel from `FULL_SIZE` to images of another side. Our choice for all other sizes.

    Args:
        side: Shorter side of the images in pixels.
        sigma: Std of the kernel in pixels, at `FULL_SIZE`.
        taps: Its width in pixels, at `FULL_SIZE`.

    Returns:
        (sigma, taps), sigma at least 1, truncated at as many sigmas, at most FARTHEST.
    """
    scaled = max(1.0, sigma * side / FULL_SIZE)
    return scaled, 2 * max(1, round(min(FARTHEST, (taps - 1) / 2 / sigma) * scaled)) + 1
