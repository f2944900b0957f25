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


def nt_xent(first, second, temperature: float, *, hard=None, hard_weight: float = 1.0):
    """SimCLR's loss: each of the 2 B rows finds its other view among the 2 B - 1 others; and its top-1 accuracy.

    first, second: (B, D), the two views, normalised here. The mean over all rows (equation 1 of the paper). hard:
    (B or 2 B, n, D), normalised here: negatives of each of the first B rows, or of all, and of that row alone; weighted
    as in `queue_logits`.
    """
    z = l2_normalize(jnp.concatenate([first, second]))
    count = z.shape[0]
    logits = jnp.matmul(z, z.T, precision=HIGHEST) / temperature
    logits = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, logits)
    if hard is not None:
        own = hard_weight * jnp.einsum("bd,bnd->bn", z[: len(hard)], l2_normalize(hard), precision=HIGHEST)
        rows_without = ((0, count - len(hard)), (0, 0))
        logits = jnp.concatenate([logits, jnp.pad(own / temperature, rows_without, constant_values=-jnp.inf)], axis=1)
    other = (jnp.arange(count) + count // 2) % count
    positives = jnp.take_along_axis(logits, other[:, None], axis=1)[:, 0]
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positives)
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == other)


def queue_logits(queries, keys, queue, temperature: float, *, hard=None, hard_weight: float = 1.0):
    """(B, 1 + K + n) logits [q k+, q queue, w q k-] / T: each query's own key first (MoCo v2).

    queries, keys: (B, D), normalised here. queue: (K, D), unit rows. hard: (B, n, D), normalised here: negatives of
    each query alone, whose similarity is weighted by hard_weight inside the exponential (Ge et al. 2021).
    """
    q, k = l2_normalize(queries), l2_normalize(keys)
    parts = [jnp.sum(q * k, axis=1, keepdims=True), jnp.matmul(q, queue.T, precision=HIGHEST)]
    if hard is not None:
        parts.append(hard_weight * jnp.einsum("bd,bnd->bn", q, l2_normalize(hard), precision=HIGHEST))
    return jnp.concatenate(parts, axis=1) / temperature


def first_of(logits):
    """Mean cross-entropy of logits (B, n) whose first column is right, and the top-1 accuracy."""
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == 0)


def queue_nce(queries, keys, queue, temperature: float, *, in_batch: bool):
    """Mean cross-entropy against a queue of earlier keys, and its top-1 accuracy.

    queries, keys: (B, D), normalised here. queue: (K, D), unit rows. Logits are those of `queue_logits`, and with
    in_batch the other keys of the batch are negatives too.
    """
    if not in_batch:
        return first_of(queue_logits(queries, keys, queue, temperature))
    q, k = l2_normalize(queries), l2_normalize(keys)
    logits = jnp.matmul(q, jnp.concatenate([k, queue]).T, precision=HIGHEST) / temperature
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(q.shape[0]))


def new_queue(rng, size: int, width: int):
    """{keys (K, D) random unit rows, pointer ()}: what a queue holds before the first step."""
    keys = l2_normalize(jax.random.normal(rng, (size, width), jnp.float32))
    return {"keys": keys, "pointer": jnp.zeros((), jnp.int32)}


def enqueue(queue, keys):
    """The queue with its oldest rows replaced by `keys` (B, D), normalised here; B divides the queue's size."""
    rows = jax.lax.dynamic_update_slice(queue["keys"], jax.lax.stop_gradient(l2_normalize(keys)), (queue["pointer"], 0))
    return {"keys": rows, "pointer": (queue["pointer"] + keys.shape[0]) % rows.shape[0]}


def byol(predictions, targets):
    """Mean of 2 - 2 cos (Grill et al. 2020, equation 2)."""
    return jnp.mean(2.0 - 2.0 * jnp.sum(l2_normalize(predictions) * l2_normalize(targets), axis=-1))


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


def patch_mse(predictions, targets):
    """Squared error of the patches given (B, n, d), averaged over each patch and over all of them."""
    return jnp.mean((predictions.astype(jnp.float32) - targets.astype(jnp.float32)) ** 2)


def patch_l1(predictions, targets):
    """Absolute error, averaged as `patch_mse` averages the squared one (the choice of SimMIM)."""
    return jnp.mean(jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32)))


def feature_std(features):
    """Standard deviation over the batch of unit-length features, times sqrt(D): 1 is healthy, 0 is collapse."""
    unit = l2_normalize(features)
    return jnp.mean(jnp.std(unit, axis=0)) * jnp.sqrt(unit.shape[-1])


def effective_rank(features):
    """(tr C)^2 / tr(C^2) of the batch's covariance C: how many directions share the variance, 1 to min(B - 1, D).

    The participation ratio of the eigenvalues: no eigenvalue need be computed. 0 where there is no variance.
    """
    centred = features.astype(jnp.float32) - features.astype(jnp.float32).mean(axis=0)
    count, width = centred.shape
    gram = centred @ centred.T if count < width else centred.T @ centred  # the same eigenvalues
    return jnp.trace(gram) ** 2 / jnp.maximum(jnp.sum(gram**2), 1e-12)


def spread(features):
    """{feature_std, effective_rank}, for the log: both fall when features collapse. No gradient."""
    features = jax.lax.stop_gradient(features)
    return {"feature_std": feature_std(features), "effective_rank": effective_rank(features)}
