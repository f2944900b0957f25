"""MaskCo: what the hole hides, what the head and the keys are, which negatives count, what it reduces to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import colourless, filled, tiny
from helpers.views import batch_of

from maskcl_jax.methods import StepContext, create
from maskcl_jax.ops import losses


@functools.cache
def made(**overrides):
    """(method, params, what a step is given, batch) of a tiny one, the target other than the online network.

    All have the same weights, however many networks they have.
    """
    fields = colourless("maskco") | {f"method.{k}": v for k, v in overrides.items()}
    method, (all_params, all_state) = create(tiny("maskco", **fields)), full()
    params, state = jax.eval_shape(method.init, jax.random.key(0))
    params = {name: all_params[name] for name in params}
    stats = {
        name: {k: all_state["batch_stats"][k] for k in state[name]} for name in ("batch_stats", "target_batch_stats")
    }
    target = jax.tree.map(lambda x: 1.1 * x + 0.01, method.target_params(params))
    context = StepContext(target, stats | {"queue": all_state["queue"]}, jax.random.key(0))
    return method, params, context, batch_of(method)


@functools.cache
def full():
    return filled(create(tiny("maskco")))


@functools.cache
def compiled(**overrides):
    method, params, context, _ = made(**overrides)
    run = jax.jit(method.forward)
    return lambda views, rng=0: run(params, context._replace(rng=jax.random.key(rng)), views)


@functools.cache
def stepped(rng=0, **overrides):
    """Every intermediate of one step."""
    method, _, _, batch = made(**overrides)
    return compiled(**overrides)(method.images_and_boxes(batch), rng)


def test_the_gradient_reaches_the_head_and_not_the_keys():
    method, params, context, batch = made()

    def loss(params, target):
        return method.loss(params, batch, context._replace(target_params=target)).loss

    online, keys = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, context.target_params)
    for name in ("mask_head", "encoder", "projector"):
        assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(online[name])) > 0, name
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(keys))


@pytest.mark.parametrize("branch", ["query", "both", "none"])
def test_where_the_head_is(branch):
    _, params, context, _ = made(**{"mask_head.branch": branch})
    assert ("mask_head" in params) == (branch != "none")
    for tree in (context.target_params, context.model_state["target_batch_stats"]):
        assert ("mask_head" in tree) == (branch == "both")
    stats = stepped(**{"mask_head.branch": branch})["model_state"]["target_batch_stats"]
    if branch == "both":  # in training mode, as the encoder
        assert int(stats["mask_head"]["block0"]["bn1"]["count"]) == 1


def test_the_branch_changes_queries_and_keys_as_it_says():
    outs = {branch: stepped(**{"mask_head.branch": branch}) for branch in ("query", "both", "none")}
    np.testing.assert_allclose(outs["query"]["q_raw"], outs["both"]["q_raw"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outs["query"]["k_raw"], outs["none"]["k_raw"], rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(outs["query"]["q_raw"] - outs["none"]["q_raw"]).max()) > 1e-3
    assert float(jnp.abs(outs["query"]["k_raw"] - outs["both"]["k_raw"]).max()) > 1e-3


def integers(box):
    return (round(float(value)) for value in box)


def test_the_query_does_not_see_what_is_masked_and_the_key_does():
    method, _, _, batch = made()
    step, plain = compiled(), stepped()
    (query, boxes), (key, key_boxes) = method.images_and_boxes(batch)
    x0, y0, x1, y1 = integers(boxes[0, 0])
    inside = (slice(0, 1), slice(y0 + 1, y1 - 1), slice(x0 + 1, x1 - 1))
    hidden = step([(query.at[inside].add(1.0), boxes), (key, key_boxes)])
    np.testing.assert_array_equal(plain["q_raw"], hidden["q_raw"])
    corner = (0, 31 if y1 < 30 else 0, 0)
    shown = step([(query.at[corner].add(3.0), boxes), (key, key_boxes)])
    assert float(jnp.abs(plain["q_raw"] - shown["q_raw"]).max()) > 1e-4
    x0, y0, x1, y1 = integers(key_boxes[0, 0])
    there = (slice(0, 1), slice(y0 + 1, y1 - 1), slice(x0 + 1, x1 - 1))
    of_key = step([(query, boxes), (key.at[there].add(1.0), key_boxes)])
    assert float(jnp.abs(plain["k_raw"] - of_key["k_raw"]).max()) > 1e-4


def test_what_is_filled_in():
    boxes = jnp.array([[[4.0, 8.0, 20.0, 16.0]], [[0.0, 0.0, 32.0, 32.0]]])
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)) + 2.0
    for fill in ("zero", "noise", "mean"):
        method = create(tiny("maskco", **{"method.fill": fill}))
        found, mask = method.mask_regions(images, boxes, jax.random.key(1))
        hole = np.zeros((2, 32, 32), bool)
        hole[0, 8:16, 4:20] = hole[1] = True
        np.testing.assert_array_equal(mask[..., 0], hole)
        np.testing.assert_array_equal(found[0][~hole[0]], images[0][~hole[0]])
        inside = np.asarray(found[0][hole[0]])
        if fill == "noise":
            np.testing.assert_allclose([inside.mean(), inside.std()], [0.0, 1.0], atol=0.25)
        else:
            want = np.asarray(images[0])[~hole[0]].mean(axis=0) if fill == "mean" else 0.0
            np.testing.assert_allclose(inside, np.broadcast_to(want, inside.shape), rtol=1e-5)
        assert np.isfinite(found).all()
        changed, _ = method.mask_regions(jnp.where(mask, 9.0, images), boxes, jax.random.key(1))
        np.testing.assert_array_equal(changed, found)


def test_without_holes_and_with_the_whole_view_as_region_it_is_moco_v2():
    """RoIAlign with one point a cell over the whole map is the mean over positions."""
    size = {"roi_size": 4, "roi_samples": 1, "shuffle_bn": False, "mask_head.branch": "none"}
    method, params, context, batch = made(**size)
    method = create(method.config)
    moco = create(tiny("moco_v2", **{"method.shuffle_bn": False, "method.temperature": 1.0}))
    whole = jnp.tile(jnp.array([[[0.0, 0.0, 32.0, 32.0]]]), (8, 1, 1))
    images = [view for view, _ in method.images_and_boxes(batch)]
    method.mask_regions = lambda images, boxes, rng: (images, jnp.zeros(()))
    ours = jax.jit(method.forward)(params, context, [(image, whole) for image in images])
    theirs = jax.jit(moco.forward)(params, context, images)
    for name in ("q_raw", "k_raw", "logits", "loss", "accuracy"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


ONE_GROUP = {"bn_group_size": 8, "mask_head.branch": "both"}


def test_shuffled_keys_are_read_where_their_boxes_are():
    """With all of the batch in one group of BatchNorm the order of the keys can change nothing."""
    one, other = (stepped(rng, **ONE_GROUP)["k_raw"] for rng in (0, 1))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    one, other = (stepped(rng)["k_raw"] for rng in (0, 1))  # in two groups
    assert float(jnp.abs(one - other).max()) > 1e-3  # else this test shows nothing


SEVERAL = {"regions": 2, "extra_regions": 1, "same_image_negatives": True, "temperature": 0.5}


def test_same_image_negatives_by_hand():
    method, _, _, batch = made(**SEVERAL)
    (query, boxes), key = method.images_and_boxes(batch)
    boxes = boxes.copy()
    boxes[0] = [[0, 0, 16, 16], [16, 16, 32, 32], [1, 0, 17, 16]]  # the third lies over the first
    out = compiled(**SEVERAL)([(query, boxes), key])
    assert out["logits"].shape == (16, 1 + 16 + 3)
    first, second = np.asarray(out["logits"][:2, -3:])
    assert np.isneginf(first[[0, 2]]).all() and np.isfinite(first[1])
    assert np.isneginf(second[1]) and np.isfinite(second[[0, 2]]).all()
    q, k = (np.asarray(losses.l2_normalize(out[name]), np.float64) for name in ("q_raw", "k_raw"))
    np.testing.assert_allclose([first[1], second[0]], [q[0] @ k[1] / 0.5, q[1] @ k[0] / 0.5], rtol=1e-4)
    np.testing.assert_allclose(out["logits"][:, 0], (q * k).sum(axis=1) / 0.5, rtol=1e-4, atol=1e-5)
    logits = np.asarray(out["logits"], np.float64)
    by_hand = (np.log(np.exp(logits).sum(axis=1)) - logits[:, 0]).mean()
    np.testing.assert_allclose(out["loss"], by_hand, rtol=1e-5)
    queue = out["model_state"]["queue"]
    assert int(queue["pointer"]) == 0  # sixteen keys of regions: the whole queue
    np.testing.assert_allclose(queue["keys"], k, rtol=1e-5, atol=1e-6)


def test_a_region_is_never_its_own_negative():
    """Not even where regions may overlap entirely."""
    own = np.asarray(stepped(**SEVERAL, negative_iou=1.0)["logits"])[:, -3:]
    expected = np.tile(np.eye(2, 3, dtype=bool), (len(own) // 2, 1))
    np.testing.assert_array_equal(np.isneginf(own), expected)


def test_the_log_says_what_chance_is_and_how_much_is_masked():
    _, params, context, batch = made(**SEVERAL)
    method, out = create(made(**SEVERAL)[0].config), stepped(**SEVERAL)
    method.forward = lambda *arguments: out
    loss, m, _ = method.loss(params, batch, context)
    candidates = np.isfinite(out["logits"]).sum(axis=1).mean()
    assert 17 <= candidates < 20
    np.testing.assert_allclose(m["contrast_loss_chance"], np.log(candidates), rtol=1e-5)
    np.testing.assert_allclose(m["contrast_accuracy_chance"], 1 / candidates, rtol=1e-5)
    assert 0.1 < float(m["masked_share"]) < 0.8
    assert float(m["feature_std"]) > 0 and float(m["effective_rank"]) >= 1
    np.testing.assert_array_equal(loss, m["loss"])


def test_both_views_are_masked_in_turn():
    method, _, _, batch = made(**ONE_GROUP, symmetric=True)
    views, out = method.images_and_boxes(batch), stepped(**ONE_GROUP, symmetric=True)
    assert method.keys_per_step == 16
    there, back = (compiled(**ONE_GROUP)(pair) for pair in (views, views[::-1]))
    np.testing.assert_allclose(out["loss"], (there["loss"] + back["loss"]) / 2, rtol=1e-4)
    assert abs(float(there["loss"] - back["loss"])) > 1e-2
    keys = losses.l2_normalize(jnp.concatenate([there["k_raw"], back["k_raw"]]))
    np.testing.assert_allclose(out["model_state"]["queue"]["keys"], keys, rtol=1e-3, atol=1e-5)


def test_pictures_show_the_hole_and_the_regions():
    method, params, context, batch = made()
    drawn = method.pictures(params, context.model_state, batch)
    assert tuple(drawn) == method.picture_names
    x0, y0, x1, y1 = batch["key_boxes"][0, 0]
    np.testing.assert_allclose(drawn["key_boxes"][0, int(np.ceil(y0 - 0.5)), int((x0 + x1) / 2)], [1, 0, 0])
    x0, y0, x1, y1 = batch["query_boxes"][0, 0]
    middle = (0, int((y0 + y1) / 2), int((x0 + x1) / 2))
    np.testing.assert_allclose(drawn["query_masked"][middle], method.config.data.mean, atol=1e-5)
