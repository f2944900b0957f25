"""Subsets of labeled images: balanced, fixed, nested, and what is refused."""

import numpy as np
import pytest

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import subsets

LABELS = np.repeat([0, 1, 2], [200, 40, 3])


def test_subsets_are_balanced_fixed_and_nested():
    small, large = (subsets.choose(LABELS, amount, seed=0) for amount in ("1%", "10%"))
    assert np.bincount(LABELS[small]).tolist() == [2, 1, 1]
    assert np.bincount(LABELS[large]).tolist() == [20, 4, 1]
    assert set(small) <= set(large)
    np.testing.assert_array_equal(large, subsets.choose(LABELS, "10%", seed=0))
    assert not np.array_equal(large, subsets.choose(LABELS, "10%", seed=1))
    assert np.bincount(LABELS[subsets.choose(LABELS, "3", seed=0)]).tolist() == [3, 3, 3]
    np.testing.assert_array_equal(subsets.choose(np.array([0, -1, 1]), "all", seed=0), [0, 2])


@pytest.mark.parametrize("amount", ["0%", "200%", "many", "0", "-3", "1.5"])
def test_amounts_that_are_none(amount):
    with pytest.raises(UserError, match="labels="):
        subsets.choose(LABELS, amount, seed=0)


def test_a_class_without_enough_images_is_named():
    with pytest.raises(UserError, match="'cat' has 3"):
        subsets.choose(LABELS, "4", seed=0, names=("ant", "bee", "cat"))
    with pytest.raises(UserError, match="'dog' has 0"):
        subsets.choose(LABELS, "1%", seed=0, names=("ant", "bee", "cat", "dog"))
