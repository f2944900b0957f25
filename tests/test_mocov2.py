"""MoCo v2: what the shuffle does and does not change, the queue, both directions."""

import jax
import jax.numpy as jnp
import numpy as np
from test_train import filled, tiny

from maskcl_jax.methods import Carried, create
from maskcl_jax.ops import losses

VIEWS = list(jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 32, 32, 3)), jnp.float32))


def made(**overrides):
    method = create(tiny("moco_v2", **{f"method.{k}": v for k, v in overrides.items()}))
    params, state = filled(method)
    return method, params, Carried(state, method.target_of(params), state, method.new_queue(jax.random.key(1)))


def stepped(**overrides):
    """Every intermediate of one step."""
    method, params, carried = made(**overrides)
    return jax.jit(method.step)(params, carried, VIEWS, jax.random.key(2)), carried


def test_shuffled_keys_come_back_in_order():
    """In one group the order within the batch cannot matter; in groups of four it decides whose statistics count."""
    whole, _ = stepped(bn_group_size=8, shuffle_bn=True)
    plain, _ = stepped(bn_group_size=8, shuffle_bn=False)
    np.testing.assert_allclose(whole["k_raw"], plain["k_raw"], atol=1e-4)
    shuffled, _ = stepped(bn_group_size=4, shuffle_bn=True)
    grouped, _ = stepped(bn_group_size=4, shuffle_bn=False)
    assert float(jnp.abs(shuffled["k_raw"] - grouped["k_raw"]).max()) > 0.01
    np.testing.assert_array_equal(shuffled["q_raw"], grouped["q_raw"])


def test_groups_are_images_in_a_row_whatever_the_others_are():
    method, params, carried = made(bn_group_size=4, shuffle_bn=False)
    encode = jax.jit(lambda images: method.maps(params, carried.model_state, images)[0])
    other = np.concatenate([VIEWS[0][:4], VIEWS[1][4:]])
    np.testing.assert_allclose(encode(VIEWS[0])[:4], encode(other)[:4], atol=1e-5)


def test_the_oldest_keys_leave_and_this_steps_keys_meet_them_first():
    out, carried = stepped(queue_size=16)
    before, after = carried.queue, out["queue"]
    assert int(after["pointer"]) == 8
    np.testing.assert_allclose(after["keys"][:8], losses.l2_normalize(out["k_raw"]), atol=1e-6)
    np.testing.assert_array_equal(after["keys"][8:], before["keys"][8:])
    assert out["logits"].shape == (8, 1 + 16)
    q = losses.l2_normalize(out["q_raw"])
    np.testing.assert_allclose(out["logits"][:, 1:], q @ before["keys"].T / 0.1, atol=1e-4)
    again = losses.enqueue(after, out["k_raw"])
    assert int(again["pointer"]) == 0
    np.testing.assert_allclose(again["keys"][8:], again["keys"][:8], atol=1e-6)


def test_both_directions_are_averaged():
    method, params, carried = made(symmetric=True, bn_group_size=0)
    step = jax.jit(method.step)
    both = step(params, carried, VIEWS, jax.random.key(2))
    single, _, _ = made(bn_group_size=0)
    step = jax.jit(single.step)
    there, back = (step(params, carried, views, jax.random.key(2)) for views in (VIEWS, VIEWS[::-1]))
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(both[name], (there[name] + back[name]) / 2, atol=1e-5)
    assert int(both["queue"]["pointer"]) == 0  # 16 keys fill the queue of 16
    keys = losses.l2_normalize(jnp.concatenate([there["k_raw"], back["k_raw"]]))
    np.testing.assert_allclose(both["queue"]["keys"], keys, atol=1e-5)


def test_no_gradient_reaches_the_target():
    method, params, carried = made()

    def loss(target):
        return method.step(params, carried._replace(target_params=target), VIEWS, jax.random.key(2))["loss"]

    grads = jax.jit(jax.grad(loss))(carried.target_params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) == 0.0
