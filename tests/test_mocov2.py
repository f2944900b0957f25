"""MoCo v2: what the shuffle does and does not change, the queue, both directions."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.methods import context_of
from helpers.tiny import filled, tiny

from maskcl_jax.methods import create
from maskcl_jax.ops import losses

VIEWS = list(jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 32, 32, 3)), jnp.float32))


def made(**overrides):
    method = create(tiny("moco_v2", **{f"method.{k}": v for k, v in overrides.items()}))
    params, state = filled(method)
    return method, params, context_of(method, params, state, seed=2)


def stepped(**overrides):
    """Every intermediate of one step."""
    method, params, context = made(**overrides)
    return jax.jit(method.forward)(params, context, VIEWS), context


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
    method, params, context = made(bn_group_size=4, shuffle_bn=False)
    encode = jax.jit(lambda images: method.maps(params, context.model_state["batch_stats"], images)[0])
    other = np.concatenate([VIEWS[0][:4], VIEWS[1][4:]])
    np.testing.assert_allclose(encode(VIEWS[0])[:4], encode(other)[:4], atol=1e-5)


def test_the_oldest_keys_leave_and_this_steps_keys_meet_them_first():
    out, context = stepped(queue_size=16)
    before, after = context.model_state["queue"], out["model_state"]["queue"]
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
    method, params, context = made(symmetric=True, bn_group_size=0, temperature=1.0)
    both = jax.jit(method.forward)(params, context, VIEWS)
    single, _, _ = made(bn_group_size=0, temperature=1.0)
    step = jax.jit(single.forward)
    there, back = (step(params, context, views) for views in (VIEWS, VIEWS[::-1]))
    assert abs(float(there["loss"] - back["loss"])) > 1e-3
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(both[name], (there[name] + back[name]) / 2, rtol=1e-5)
    queue = both["model_state"]["queue"]
    assert int(queue["pointer"]) == 0  # 16 keys fill the queue of 16
    keys = losses.l2_normalize(jnp.concatenate([there["k_raw"], back["k_raw"]]))
    np.testing.assert_allclose(queue["keys"], keys, atol=1e-5)


def test_no_gradient_reaches_the_target():
    method, params, context = made()

    def loss(target):
        return method.forward(params, context._replace(target_params=target), VIEWS)["loss"]

    grads = jax.jit(jax.grad(loss))(context.target_params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) == 0.0
