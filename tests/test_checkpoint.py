"""Saving, restoring, and refusing what is not ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskcl_jax import config
from maskcl_jax.errors import UserError
from maskcl_jax.training import checkpoint, sharding, train_state


def small_config(arg="synthetic"):
    return config.load("mae", arg)


def state(*, width=3, step=0):
    return train_state.TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"dense": {"kernel": jax.random.normal(jax.random.key(step), (2, width))}},
        target_params=None,
        model_state={"batch_stats": {"mean": jnp.full((width,), 1 / 3)}},
        opt_state=({"mu": jnp.arange(width, dtype=jnp.float32)}, ()),
    )


def abstract(tree):
    placed = sharding.replicated(sharding.create_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), tree)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(7, state(step=7))
    checkpoints.close()
    restored = checkpoint.Checkpoints(tmp_path).restore(abstract(state()))
    assert isinstance(restored, train_state.TrainState)
    jax.tree.map(np.testing.assert_array_equal, restored, state(step=7))


def test_the_last_and_every_nth_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(step, state(step=step))
    checkpoints.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [4, 6, 7]


def test_another_architecture_is_refused_with_the_shapes(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state(width=3))
    checkpoints.close()
    with pytest.raises(UserError, match=r"another architecture.*kernel \(2, 3\) there, \(2, 5\) here"):
        checkpoint.Checkpoints(tmp_path).restore(abstract(state(width=5)))


def test_the_folder_of_another_config_is_refused_with_the_difference(tmp_path):
    checkpoint.claim(tmp_path / "run", small_config())
    checkpoint.claim(tmp_path / "run", small_config())
    other = small_config()
    other.log.every_steps = 3  # what is only shown may change
    checkpoint.claim(tmp_path / "run", other)
    other.method.mask_ratio = 0.5
    with pytest.raises(UserError, match=r"method.mask_ratio: 0.75 there, 0.5 here"):
        checkpoint.claim(tmp_path / "run", other)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="not writable"):
        checkpoint.claim(tmp_path / "file" / "run", small_config())
