"""Batch normalization with torch's running statistics, over the whole batch or over groups of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalizes (B, ..., C) over all but the last dimension; statistics are float32.

    The running statistics `mean` and `var` move towards the groups' mean and unbiased variance, as in torch (flax's own
    BatchNorm keeps the biased variance); `count` is how often they moved, torch's `num_batches_tracked`.

    Attributes:
        eps: Added to the variance.
        momentum: Fraction by which the running statistics move.
        affine: Whether there are a scale and a bias.
        group_size: Number of consecutive images that share statistics; 0 is the whole batch.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    affine: bool = True
    group_size: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalizes.

        Args:
            x: (B, ..., C).
            train: Whether to use the batch's statistics, and to move the running ones; else the running ones are used.

        Returns:
            An array of the shape and dtype of x.
        """
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        calls = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        y = x.astype(jnp.float32)
        if train:
            # The example that initialises parameters need not be a whole group.
            size = x.shape[0] if self.is_initializing() else self.group_size or x.shape[0]
            groups = y.reshape(x.shape[0] // size, size, *x.shape[1:])
            axes = tuple(range(1, groups.ndim - 1))
            group_mean = groups.mean(axis=axes, keepdims=True)
            group_var = jnp.mean((groups - group_mean) ** 2, axis=axes, keepdims=True)
            y = ((groups - group_mean) / jnp.sqrt(group_var + self.eps)).reshape(x.shape)
            if not self.is_initializing():
                count = groups.size // (groups.shape[0] * channels)
                unbiased = group_var.reshape(-1, channels).mean(axis=0) * count / max(count - 1, 1)
                mean.value += self.momentum * (group_mean.reshape(-1, channels).mean(axis=0) - mean.value)
                var.value += self.momentum * (unbiased - var.value)
                calls.value += 1
        else:
            y = (y - mean.value) / jnp.sqrt(var.value + self.eps)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
            y = y * scale + bias
        return y.astype(x.dtype)
