"""Losses against closed forms in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from maskcl_jax.ops import losses

RNG = np.random.default_rng(0)


def test_info_nce_is_the_cross_entropy_of_cosines():
    q, k = RNG.normal(size=(5, 7)), RNG.normal(size=(5, 7))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k)]
    logits = unit[0] @ unit[1].T / 0.2
    expected = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])
    loss, accuracy = losses.info_nce(jnp.asarray(q), jnp.asarray(k), 0.2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(logits.argmax(1) == np.arange(5)))


def test_nt_xent_ranks_the_other_view_among_all_others():
    first, second = RNG.normal(size=(3, 7)), RNG.normal(size=(3, 7))
    z = np.concatenate([first, second])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    costs, hits = [], []
    for i, row in enumerate(z @ z.T / 0.2):
        others = [j for j in range(6) if j != i]
        costs.append(np.log(np.exp(row[others]).sum()) - row[(i + 3) % 6])
        hits.append(max(others, key=lambda j: row[j]) == (i + 3) % 6)
    loss, accuracy = losses.nt_xent(jnp.asarray(first), jnp.asarray(second), 0.2)
    np.testing.assert_allclose(loss, np.mean(costs), rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(hits))


def test_hard_negatives_are_weighted_inside_the_exponential():
    q, k, queue, hard = (RNG.normal(size=size) for size in ((3, 7), (3, 7), (5, 7), (3, 2, 7)))
    q, k, queue, hard = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k, queue, hard))
    rows = [[q[i] @ k[i], *(queue @ q[i]), *(2.0 * hard[i] @ q[i])] for i in range(3)]
    logits = losses.queue_logits(*map(jnp.asarray, (q, k, queue)), 0.2, hard=jnp.asarray(hard), hard_weight=2.0)
    np.testing.assert_allclose(logits, np.array(rows) / 0.2, rtol=1e-5, atol=1e-5)


def test_collapse_costs_the_logarithm_of_the_batch():
    same = jnp.ones((16, 4))
    np.testing.assert_allclose(losses.info_nce(same, same, 0.5)[0], np.log(16), rtol=1e-6)


def test_patch_statistics_are_unbiased_with_eps_under_the_root():
    patches = RNG.normal(size=(2, 3, 12))
    mean, std = losses.patch_statistics(jnp.asarray(patches))
    np.testing.assert_allclose(mean[..., 0], patches.mean(-1), atol=1e-6)
    np.testing.assert_allclose(std[..., 0], np.sqrt(patches.var(-1, ddof=1) + 1e-6), rtol=1e-5)


def test_a_flat_patch_far_from_zero_keeps_its_variance():
    patch = 100.0 + 1e-3 * RNG.normal(size=(1, 1, 768))
    exact = np.float32(patch).astype(np.float64)
    _, std = losses.patch_statistics(jnp.asarray(np.float32(patch)))
    np.testing.assert_allclose(std[0, 0, 0], np.sqrt(exact.var(ddof=1) + 1e-6), rtol=2e-2)


@pytest.mark.parametrize(("loss", "error"), [(losses.patch_mse, np.square), (losses.patch_l1, np.abs)])
def test_patch_losses_are_means_in_float32(loss, error):
    predictions, targets = RNG.normal(size=(2, 4, 6)), RNG.normal(size=(2, 4, 6))
    np.testing.assert_allclose(
        loss(*map(jnp.asarray, (predictions, targets))), error(predictions - targets).mean(), rtol=1e-5
    )
    half = jnp.asarray(predictions, jnp.bfloat16)
    assert loss(half, half).dtype == jnp.float32


@pytest.mark.parametrize(("features", "value"), [(RNG.normal(size=(4096, 64)), 1.0), (np.ones((32, 64)), 0.0)])
def test_feature_std_is_one_when_healthy_and_zero_in_collapse(features, value):
    np.testing.assert_allclose(losses.feature_std(jnp.asarray(features)), value, atol=0.02)
