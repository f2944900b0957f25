"""Losses: pure functions in float32, whatever precision the networks compute in."""

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


def l2_normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Rows (..., D) of unit length, float32; the length is bounded from below by eps, as in torch's `F.normalize`."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, eps**2))


# --- Contrast within a batch ----------------------------------------------------------------------------------


def info_nce(queries: jax.Array, keys: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """InfoNCE: cross-entropy of q k^T / T, each row's own key being the positive.

    Multiplied by 2 T it has the scale that MoCo v3, ccMIM and CMAE use.

    Args:
        queries: (B, D), normalized here. Under jit the batch is global: the negatives are those of all devices.
        keys: (B, D), normalized here.
        temperature: T.

    Returns:
        (mean loss, top-1 accuracy).
    """
    logits = jnp.matmul(l2_normalize(queries), l2_normalize(keys).T, precision=HIGHEST) / temperature
    positives = jnp.diagonal(logits)
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positives)
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(logits.shape[0]))
    return loss, accuracy


def nt_xent(
    first: jax.Array,
    second: jax.Array,
    temperature: float,
    *,
    hard: jax.Array | None = None,
    hard_weight: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """NT-Xent, SimCLR's loss: each of the 2 B rows finds its other view among the 2 B - 1 other rows.

    Args:
        first: One view, (B, D), normalized here.
        second: The other view, (B, D), normalized here.
        temperature: T.
        hard: (B or 2 B, n, D), normalized here: additional negatives of each of the first B rows, or of all rows, and
            of that row only.
        hard_weight: See `queue_logits`.

    Returns:
        (loss, the mean over all rows; top-1 accuracy).

    Source: Chen et al. 2020, equation 1.
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


def byol(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean of 2 - 2 cos(prediction, target), both (B, D).

    Source: Grill et al. 2020, equation 2.
    """
    return jnp.mean(2.0 - 2.0 * jnp.sum(l2_normalize(predictions) * l2_normalize(targets), axis=-1))


# --- Contrast with a queue ------------------------------------------------------------------------------------


def queue_logits(
    queries: jax.Array,
    keys: jax.Array,
    queue: jax.Array,
    temperature: float,
    *,
    hard: jax.Array | None = None,
    hard_weight: float = 1.0,
) -> jax.Array:
    """MoCo v2's logits, [q k+, q queue, w q k-] / T.

    Args:
        queries: (B, D), normalized here.
        keys: (B, D), normalized here, the positives.
        queue: (K, D), rows of unit length.
        temperature: T.
        hard: (B, n, D), normalized here: additional negatives of each query only.
        hard_weight: w, by which their similarity is multiplied inside the exponential (Ge et al. 2021).

    Returns:
        (B, 1 + K + n), each query's own key first.
    """
    q, k = l2_normalize(queries), l2_normalize(keys)
    parts = [jnp.sum(q * k, axis=1, keepdims=True), jnp.matmul(q, queue.T, precision=HIGHEST)]
    if hard is not None:
        parts.append(hard_weight * jnp.einsum("bd,bnd->bn", q, l2_normalize(hard), precision=HIGHEST))
    return jnp.concatenate(parts, axis=1) / temperature


def nce_from_logits(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean cross-entropy, top-1 accuracy) of logits (B, n) whose first column is the right one."""
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == 0)


def queue_nce(
    queries: jax.Array, keys: jax.Array, queue: jax.Array, temperature: float, *, in_batch: bool
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE against a queue of earlier keys.

    Args:
        queries: (B, D), normalized here.
        keys: (B, D), normalized here, the positives.
        queue: (K, D), rows of unit length.
        temperature: T.
        in_batch: Whether the other keys of the batch are negatives, too.

    Returns:
        (mean cross-entropy, top-1 accuracy).
    """
    if not in_batch:
        return nce_from_logits(queue_logits(queries, keys, queue, temperature))
    q, k = l2_normalize(queries), l2_normalize(keys)
    logits = jnp.matmul(q, jnp.concatenate([k, queue]).T, precision=HIGHEST) / temperature
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(q.shape[0]))


def new_queue(rng: jax.Array, size: int, width: int) -> dict[str, jax.Array]:
    """A queue before the first step: {"keys": (size, width) random rows of unit length, "pointer": () int32, 0}."""
    keys = l2_normalize(jax.random.normal(rng, (size, width), jnp.float32))
    return {"keys": keys, "pointer": jnp.zeros((), jnp.int32)}


def enqueue(queue: dict[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
    """The queue with its oldest rows replaced by `keys` (B, D), normalized here; B divides the queue's size."""
    rows = jax.lax.dynamic_update_slice(queue["keys"], jax.lax.stop_gradient(l2_normalize(keys)), (queue["pointer"], 0))
    return {"keys": rows, "pointer": (queue["pointer"] + keys.shape[0]) % rows.shape[0]}


# --- Reconstruction of patches --------------------------------------------------------------------------------


def patch_statistics(patches: jax.Array, eps: float = 1e-6) -> tuple[jax.Array, jax.Array]:
    """Mean and std of every patch (B, N, d), each (B, N, 1) float32; the variance is unbiased, eps under the root.

    From (x - mean)^2: a difference of moments loses the variance of flat patches.

    Source: facebookresearch/mae `forward_loss`.
    """
    patches = patches.astype(jnp.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    variance = jnp.sum((patches - mean) ** 2, axis=-1, keepdims=True) / (patches.shape[-1] - 1)
    return mean, jnp.sqrt(variance + eps)


def normalize_patches(patches: jax.Array) -> jax.Array:
    """Patches (B, N, d) -> (x - mean) / std of each, float32."""
    mean, std = patch_statistics(patches)
    return (patches.astype(jnp.float32) - mean) / std


def patch_mse(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error of patches (B, n, d), averaged over each patch and over all of them."""
    return jnp.mean((predictions.astype(jnp.float32) - targets.astype(jnp.float32)) ** 2)


def patch_l1(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Absolute error of patches (B, n, d), averaged as `patch_mse` averages the squared one (SimMIM's choice)."""
    return jnp.mean(jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32)))


# --- Collapse -------------------------------------------------------------------------------------------------


def feature_std(features: jax.Array) -> jax.Array:
    """Std over the batch of unit-length features (B, D), times sqrt(D): 1 is healthy, 0 is collapse."""
    unit = l2_normalize(features)
    return jnp.mean(jnp.std(unit, axis=0)) * jnp.sqrt(unit.shape[-1])


def effective_rank(features: jax.Array) -> jax.Array:
    """(tr C)^2 / tr(C^2) of the covariance C of features (B, D): how many directions share the variance.

    The participation ratio of the eigenvalues, without computing them; 1 to min(B - 1, D), 0 where there is no
    variance.
    """
    centered = features.astype(jnp.float32) - features.astype(jnp.float32).mean(axis=0)
    count, width = centered.shape
    gram = centered @ centered.T if count < width else centered.T @ centered  # the same eigenvalues
    return jnp.trace(gram) ** 2 / jnp.maximum(jnp.sum(gram**2), 1e-12)


def spread(features: jax.Array) -> dict[str, jax.Array]:
    """{"feature_std", "effective_rank"} of features (B, D), for the log: both fall in collapse. No gradient."""
    features = jax.lax.stop_gradient(features)
    return {"feature_std": feature_std(features), "effective_rank": effective_rank(features)}
