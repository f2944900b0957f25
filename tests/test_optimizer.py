"""The schedule and the chain against closed forms and torch's update rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.training import optimizer

PARAMS = {
    "encoder": {
        "cls_token": np.ones((1, 1, 2), np.float32),
        "norm": {"scale": np.ones(2, np.float32), "bias": np.ones(2, np.float32)},
        "fc": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)},
    },
    "projector": {"bn1": {"scale": np.ones(2, np.float32), "bias": np.ones(2, np.float32)}},
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("matrices", {"encoder/cls_token", "encoder/fc/kernel"}),
        ("kernels", {"encoder/fc/kernel", "projector/bn1/scale"}),
    ],
)
def test_which_parameters_decay(rule, expected):
    tx = optimizer.create(config(weight_decay=0.5, decay_on=rule), lambda step: 0.1)
    updates, _ = tx.update(jax.tree.map(np.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    flat, _ = jax.tree_util.tree_flatten_with_path(updates)
    assert {"/".join(k.key for k in path) for path, leaf in flat if abs(leaf).max() > 0} == expected


def test_frozen_parameters_do_not_decay_either():
    tx = optimizer.create(config(weight_decay=0.5, decay_on="all"), lambda step: 0.1, frozen=(("encoder", "fc"),))
    updates, _ = tx.update(jax.tree.map(np.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
    flat, _ = jax.tree_util.tree_flatten_with_path(updates)
    still = {"/".join(k.key for k in path) for path, leaf in flat if abs(leaf).max() == 0}
    assert still == {"encoder/fc/kernel", "encoder/fc/bias"}


def config(**optimizer_fields):
    c = config_lib.load("mae", "synthetic")
    c.optimizer.update(optimizer_fields)
    return c


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (55, 0.1 + 0.9 * 0.5), (100, 0.1), (120, 0.1)],
)
def test_warmup_cosine_meets_its_corners(step, value):
    got = optimizer.warmup_cosine(step, peak=1.0, warmup=10, total=100, minimum=0.1)
    np.testing.assert_allclose(got, value, atol=1e-6)


def test_without_warmup_it_starts_at_the_peak():
    np.testing.assert_allclose(optimizer.warmup_cosine(0, peak=2.0, warmup=0, total=10), 2.0)


def test_the_peak_follows_the_linear_scaling_rule():
    c = config(base_lr=1.5e-4, warmup_epochs=2.0)
    c.batch_size = 4096
    schedule = optimizer.learning_rate(c, total_steps=1000, steps_per_epoch=10)
    np.testing.assert_allclose(schedule(20), 2.4e-3, rtol=1e-6)
    np.testing.assert_allclose(schedule(10), 1.2e-3, rtol=1e-6)


def test_a_learning_rate_that_falls_once_per_epoch():
    c = config(base_lr=1.0, warmup_epochs=0.0, per_epoch=True)
    c.batch_size = 256
    schedule = optimizer.learning_rate(c, total_steps=30, steps_per_epoch=10)
    by_epoch = [0.5 * (1 + np.cos(np.pi * epoch / 3)) for epoch in range(3)]  # facebookresearch/moco
    np.testing.assert_allclose([schedule(s) for s in range(30)], np.repeat(by_epoch, 10), rtol=1e-5)
    c.optimizer.warmup_epochs = 1.0
    schedule = optimizer.learning_rate(c, total_steps=30, steps_per_epoch=10)
    by_epoch = [0.5 * (1 + np.cos(np.pi * epoch / 2)) for epoch in range(2)]
    expected = [*np.arange(10) / 10, *np.repeat(by_epoch, 10)]
    np.testing.assert_allclose([schedule(s) for s in range(30)], expected, rtol=1e-5)


def test_lars_scales_what_decays_by_the_norms():
    tx = optimizer.create(
        config(name="lars", weight_decay=0.1, decay_on="matrices", momentum=0.9), lambda step: 0.5 / (step + 1)
    )
    params = {"kernel": np.float32([[3.0, 4.0]]), "bias": np.float32([1.0, 2.0])}
    grads = {"kernel": np.float32([[0.1, -0.2]]), "bias": np.float32([0.3, 0.4])}
    state, speed, expected = tx.init(params), dict.fromkeys(params, 0.0), dict(params)
    for rate in (0.5, 0.25):
        updates, state = tx.update(grads, state, params)
        params = {key: params[key] + updates[key] for key in params}
        slope = {"kernel": grads["kernel"] + 0.1 * expected["kernel"], "bias": grads["bias"]}
        norm = {key: np.linalg.norm(value) for key, value in slope.items()}
        slope["kernel"] = slope["kernel"] * 0.001 * np.linalg.norm(expected["kernel"]) / norm["kernel"]
        speed = {key: 0.9 * speed[key] + rate * slope[key] for key in slope}
        expected = {key: expected[key] - speed[key] for key in slope}
    for key, value in expected.items():
        np.testing.assert_allclose(params[key], value, rtol=1e-6)


def test_lars_of_mae_applies_the_learning_rate_last():
    """Its momentum gathers gradients, not updates: after a learning rate of 1 one of 0.1 makes a small step."""
    nothing = {"weight": False}
    tx = optimizer.lars_mae(lambda step: 0.1**step, momentum=0.9, weight_decay=0.0, mask=nothing)
    params, grads = {"weight": jnp.ones(3)}, {"weight": jnp.ones(3)}
    state, updates = tx.init(params), []
    for _ in range(2):
        update, state = tx.update(grads, state, params)
        updates.append(update["weight"][0])
    np.testing.assert_allclose(updates, [-1.0, -0.19], rtol=1e-5)


def test_a_short_run_warms_up_for_half_of_it_at_most():
    c = config(warmup_epochs=40.0)
    assert optimizer.warmup_steps(c, total_steps=4, steps_per_epoch=100) == 2
    assert optimizer.warmup_steps(c, total_steps=100_000, steps_per_epoch=100) == 4000


def test_a_warmup_that_is_shortened_is_reported_with_the_steps_it_has():
    c = config(warmup_epochs=1.5)
    assert optimizer.shortened_warmup(c, total_steps=300, steps_per_epoch=100) is None
    text = optimizer.shortened_warmup(c, total_steps=299, steps_per_epoch=100)
    assert text.startswith("warning: optimizer.warmup_epochs=1.5 is 150 steps")
    assert text.endswith("run's 299: the warm-up has 149 steps")


def test_a_warmup_beside_milestones_is_refused():
    c = config(warmup_epochs=1.0)
    c.optimizer.milestones = (2, 4)
    with pytest.raises(UserError, match=r"warmup_epochs=1\.0 does not go with optimizer\.milestones=\(2, 4\)"):
        optimizer.learning_rate(c, total_steps=50, steps_per_epoch=10)


def adamw_by_hand(w, grads, *, lr, b1, b2, eps, decay):
    """torch.optim.AdamW, in float64."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        w = w * (1 - lr * decay)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def test_adamw_decays_matrices_and_tokens_only():
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0), "cls": jnp.full((1, 1, 2), 2.0)}
    grads = [0.3, -0.1, 0.2]
    tx = optimizer.create(config(weight_decay=0.5), lambda step: 0.1)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(jax.tree.map(lambda p, g=g: jnp.full_like(p, g), params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    rule = {"lr": 0.1, "b1": 0.9, "b2": 0.95, "eps": 1e-8}
    np.testing.assert_allclose(params["kernel"], adamw_by_hand(2.0, grads, decay=0.5, **rule), rtol=1e-5)
    np.testing.assert_allclose(params["cls"], adamw_by_hand(2.0, grads, decay=0.5, **rule), rtol=1e-5)
    np.testing.assert_allclose(params["bias"], adamw_by_hand(2.0, grads, decay=0.0, **rule), rtol=1e-5)


def test_sgd_is_that_of_torch():
    tx = optimizer.create(config(name="sgd", weight_decay=0.1, momentum=0.9, decay_on="all"), lambda step: 0.5)
    w = jnp.asarray(1.0)
    state, mine, velocity = tx.init(w), 1.0, 0.0
    for g in (0.2, -0.4):
        updates, state = tx.update(jnp.asarray(g), state, w)
        w = w + updates
        velocity = 0.9 * velocity + (g + 0.1 * mine)
        mine = mine - 0.5 * velocity
    np.testing.assert_allclose(w, mine, rtol=1e-6)


def test_clip_norm_bounds_the_gradient():
    tx = optimizer.create(config(name="sgd", weight_decay=0.0, momentum=0.0, clip_norm=1.0), lambda step: 1.0)
    w = jnp.zeros(2)
    updates, _ = tx.update(jnp.asarray([30.0, 40.0]), tx.init(w), w)
    np.testing.assert_allclose(updates, [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("name", "adamax"), ("decay_on", "some")])
def test_unknown_words_are_refused(field, value):
    with pytest.raises(UserError, match=f"optimizer.{field}='{value}'"):
        optimizer.create(config(**{field: value}), lambda step: 1.0)
