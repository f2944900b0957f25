"""Losses: pure functions in float32, whatever precision the networks compute in."""

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


def l2_normalize(x, eps: float = 1e-12):
    """Rows of unit length, float32 (torch `F.normalize`: the length is bounded from below by eps)."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, eps**2))


def info_nce(queries, keys, temperature: float):
    """Mean cross-entropy of q k^T / T with each row's own key as the positive, and its top-1 accuracy.

    queries, keys: (B, D), normalised here; under jit the batch is global, so the negatives are those of all devices.
    Multiply by 2 T for the scale that MoCo v3, ccMIM and CMAE use.
    """
    logits = jnp.matmul(l2_normalize(queries), l2_normalize(keys).T, precision=HIGHEST) / temperature
    positives = jnp.diagonal(logits)
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positives)
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(logits.shape[0]))
    return loss, accuracy


def patch_statistics(patches, eps: float = 1e-6):
    """Mean and standard deviation of every patch (B, N, 1), float32; the variance is unbiased, eps under the root.

    Source: facebookresearch/mae `forward_loss`. From (x - mean)^2: a difference of moments loses flat patches.
    """
    patches = patches.astype(jnp.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    variance = jnp.sum((patches - mean) ** 2, axis=-1, keepdims=True) / (patches.shape[-1] - 1)
    return mean, jnp.sqrt(variance + eps)


def normalize_patches(patches):
    """Each patch less its mean, over its standard deviation."""
    mean, std = patch_statistics(patches)
    return (patches.astype(jnp.float32) - mean) / std


def masked_patch_mse(predictions, targets, mask):
    """Squared error, averaged over each patch (B, N, d), then over the masked patches (mask (B, N), 1 = masked)."""
    error = jnp.mean((predictions.astype(jnp.float32) - targets.astype(jnp.float32)) ** 2, axis=-1)
    return jnp.sum(error * mask) / jnp.sum(mask)


def feature_std(features):
    """Standard deviation over the batch of unit-length features, times sqrt(D): 1 is healthy, 0 is collapse."""
    unit = l2_normalize(features)
    return jnp.mean(jnp.std(unit, axis=0)) * jnp.sqrt(unit.shape[-1])
