"""Mask mathematics against explicit loops and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskcl_jax.ops import masking


def test_patchify_is_rows_of_rows_and_back():
    images = np.random.default_rng(0).normal(size=(2, 6, 9, 2)).astype(np.float32)
    patches = masking.patchify(images, 3)
    assert patches.shape == (2, 6, 18)
    for n in range(6):
        r, c = divmod(n, 3)
        np.testing.assert_array_equal(patches[1, n], images[1, 3 * r : 3 * r + 3, 3 * c : 3 * c + 3].reshape(-1))
    np.testing.assert_array_equal(masking.unpatchify(patches, 3, (6, 9)), images)


@pytest.mark.parametrize(("count", "ratio", "visible"), [(196, 0.75, 49), (36, 0.75, 9), (10, 0.9, 0), (64, 0.6, 25)])
def test_num_visible_is_truncated_as_python_does(count, ratio, visible):
    assert masking.num_visible(count, ratio) == int(count * (1 - ratio)) == visible


def test_restore_puts_every_token_back():
    order = np.stack([np.random.default_rng(i).permutation(12) for i in range(3)])
    tokens = jnp.arange(36.0).reshape(3, 12, 1)
    visible, masked = jnp.asarray(order[:, :4]), jnp.asarray(order[:, 4:])
    shuffled = jnp.concatenate([masking.take(tokens, visible), masking.take(tokens, masked)], axis=1)
    np.testing.assert_array_equal(masking.take(shuffled, masking.restore_ids(visible, masked)), tokens)
    mask = masking.mask_of(visible, 12)
    for row in range(3):
        assert set(np.flatnonzero(np.asarray(mask[row]) == 0)) == set(order[row, :4])


def test_ranking_by_the_difference_is_the_released_ratio_of_softmaxes():
    a = jax.random.uniform(jax.random.key(0), (8, 49)) * 0.3
    u = jax.random.uniform(jax.random.key(1), (8, 49))
    released = jnp.argsort(jax.nn.softmax(a) / jax.nn.softmax(u), axis=1)
    visible, masked = masking.split_by_score(masking.importance_score(a, u), 12)
    np.testing.assert_array_equal(jnp.concatenate([visible, masked], axis=1), released)


def mask_frequency(score, attention, visible, draws=4000):
    noise = jax.random.uniform(jax.random.key(2), (draws, len(attention)))
    shown, _ = masking.split_by_score(score(jnp.broadcast_to(attention, noise.shape), noise), visible)
    return np.asarray(masking.mask_of(shown, len(attention)).mean(axis=0))


def test_uniform_attention_masks_every_patch_alike():
    frequency = mask_frequency(masking.importance_score, jnp.full(64, 0.06), 16)
    np.testing.assert_allclose(frequency, 0.75, atol=4 * np.sqrt(0.75 * 0.25 / 4000))


def test_importance_masks_in_proportion_to_attention():
    attention = jnp.where(jnp.arange(196) < 30, 0.161, 0.04)
    frequency = mask_frequency(masking.importance_score, attention, 49)
    # clip(A + c, 0, 1) with c such that the frequencies add up to 147.
    shift = (147 - float(attention.sum())) / 196
    np.testing.assert_allclose(frequency, np.clip(attention + shift, 0, 1), atol=0.035)
    np.testing.assert_allclose(frequency[:30].mean(), 0.853, atol=0.01)


def test_gumbel_draws_the_first_patch_in_proportion():
    attention = jnp.asarray([0.1, 0.2, 0.3, 0.4])
    frequency = mask_frequency(masking.gumbel_score, attention, 3, draws=20_000)
    np.testing.assert_allclose(frequency, attention, atol=0.02)


def test_topk_masks_the_most_attended():
    attention = jnp.asarray([0.4, 0.1, 0.3, 0.2])
    np.testing.assert_array_equal(mask_frequency(masking.topk_score, attention, 2, draws=10), [1, 0, 1, 0])
