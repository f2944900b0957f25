"""CMAE, MACRL, MoCo v3, SimCLR: what each switch does, what each reduces to, what the target and the bank do."""

import functools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import context_of, loss_and_grads, metrics_of
from helpers.tiny import CONFIGS, colourless, filled, tiny
from helpers.views import batch_of

from maskcl_jax.methods import create
from maskcl_jax.methods.mae import MAE
from maskcl_jax.ops import losses, masking
from maskcl_jax.training import optimizer, train_state
from maskcl_jax.training.step import make_train_step
from maskcl_jax.views.color import Color
from maskcl_jax.views.patch_mask import PatchMask

TARGETS = ("cmae", "macrl", "mocov3")


@functools.cache
def made(name, **overrides):
    """(method, params, state, batch) of a tiny one."""
    method = create(tiny(name, **colourless(name) | {f"method.{k}": v for k, v in overrides.items()}))
    return method, *filled(method), batch_of(method)


@functools.cache
def run(name, **overrides):
    """(loss, metrics, gradients) of one step."""
    method, params, state, b = made(name, **overrides)
    value, aux, grads = loss_and_grads(method, params, state, b)
    return value, aux.metrics, grads


@functools.cache
def logged(name, **overrides):
    """The metrics of one step: no backward pass."""
    return metrics_of(*made(name, **overrides))


class MAEWithRowsFirst(MAE):
    """MAE with the position table of CMAE."""

    positions = "mocov3"


def mae_loss(method, params, b, view="query"):
    """What MAE makes of one view, with the same weights and mask."""
    mae = MAEWithRowsFirst(method.config) if method.positions == "mocov3" else MAE(method.config)
    renamed = {"image": b[view], "visible": b[f"{view}_visible"], "masked": b[f"{view}_masked"]}
    params = {k: params[k] for k in ("encoder", "decoder")}
    value, _, grads = loss_and_grads(mae, params, {}, renamed)
    return value, grads


def test_cmae_without_contrast_is_mae():
    method, params, _, b = made("cmae", contrast_weight=0.0)
    value, _, grads = run("cmae", contrast_weight=0.0)
    expected, mae_grads = mae_loss(method, params, b)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for part in ("encoder", "decoder"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), grads[part], mae_grads[part])
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads["feature_decoder"]))


def test_cmae_without_feature_decoder_reconstructs_as_mae():
    method, params, _, b = made("cmae", **{"feature_decoder.kind": "none"})
    assert "feature_decoder" not in params
    _, metrics, grads = run("cmae", **{"feature_decoder.kind": "none"})
    expected, mae_grads = mae_loss(method, params, b)
    np.testing.assert_allclose(metrics["loss_rec"], expected, rtol=1e-6)
    # The contrast goes past the pixel decoder: its gradient is MAE's own.
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), grads["decoder"], mae_grads["decoder"])


def test_a_shared_decoder_feels_the_contrast():
    method, params, _, b = made("cmae", **{"feature_decoder.kind": "shared"})
    assert "feature_decoder" not in params
    _, _, grads = run("cmae", **{"feature_decoder.kind": "shared"})
    _, mae_grads = mae_loss(method, params, b)
    assert float(jnp.abs(grads["decoder"]["mask_token"] - mae_grads["decoder"]["mask_token"]).max()) > 1e-4


def test_cmae_hides_blocks():
    method = create(tiny("cmae", **{"method.mask_block": 2, "method.mask_ratio": 0.65}))
    b = batch_of(method)
    masked = np.ones((8, 16), bool)
    np.put_along_axis(masked, b["query_visible"], False, axis=1)
    cells = masked.reshape(8, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(8, 4, 4)
    assert set(cells.sum(axis=2).ravel()) == {0, 4}
    assert method.num_visible == int(4 * (1 - 0.65)) * 4
    both = np.concatenate([b["query_visible"], b["query_masked"]], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(16), (8, 1)))


def test_the_scale_and_kind_of_the_contrast():
    doubled, plain, byol = logged("cmae"), logged("cmae", contrast_scale="plain"), logged("cmae", contrast="byol")
    np.testing.assert_allclose(doubled["loss_contrast"], 0.14 * plain["loss_contrast"], rtol=1e-5)
    assert 0 < float(byol["loss_contrast"]) < 4
    np.testing.assert_allclose(doubled["contrast_loss_chance"], 0.14 * np.log(8), rtol=1e-5)


def test_a_collapsed_contrast_costs_what_is_called_chance():
    same = jnp.ones((16, 4))
    np.testing.assert_allclose(losses.info_nce(same, same, 0.07)[0], np.log(16), rtol=1e-6)
    bank = losses.l2_normalize(jnp.ones((32, 4)))
    loss, accuracy = losses.queue_nce(same, same, bank, 0.2, in_batch=True)
    np.testing.assert_allclose(loss, np.log(48), rtol=1e-6)
    assert float(accuracy) == 1 / 16


@pytest.mark.parametrize("name", TARGETS)
def test_no_gradient_reaches_the_target(name):
    method, params, state, b = made(name)
    context = context_of(method, params, state)

    def loss(target):
        return method.loss(params, b, context._replace(target_params=target)).loss

    grads = jax.jit(jax.grad(loss))(method.target_params(params))
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads))


@functools.cache
def step_of(name):
    """(method, state before, state after) one step at a rate of 0.1 and a momentum of 0.9, all weights decayed."""
    fields = {"optimizer.weight_decay": 0.5, "optimizer.decay_on": "all", "method.momentum": 0.9}
    c = tiny(name, **colourless(name) | fields)
    method = create(c)
    tx = optimizer.create(c, lambda step: 0.1, frozen=method.frozen)
    method.init = lambda key: filled(create(c))
    before = train_state.create(method, tx, jax.random.key(0))
    # Apart from the online network, as later in a run: moving to where it is already would not be seen.
    before = before.replace(target_params=jax.tree.map(lambda x: 0.5 * x, before.target_params))
    step = jax.jit(make_train_step(method, tx, lambda step: 0.1, seed=0, total_steps=10))
    return method, before, *step(before, batch_of(method))


@pytest.mark.parametrize("name", TARGETS)
def test_when_and_how_far_the_target_moves(name):
    method, before, after, metrics = step_of(name)
    online = before.params if method.ema_first else after.params
    expected = jax.tree.map(lambda t, o: 0.9 * t + 0.1 * o, before.target_params, method.target_params(online))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), after.target_params, expected)
    np.testing.assert_allclose(metrics["momentum"], 0.9, rtol=1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, before.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_frozen_projection_keeps_its_first_value():
    _, before, after, _ = step_of("mocov3")
    jax.tree.map(
        np.testing.assert_array_equal, before.params["encoder"]["patch_embed"], after.params["encoder"]["patch_embed"]
    )


def test_the_momentum_rises_to_one():
    method, *_ = made("mocov3")
    values = [float(method.momentum(p)) for p in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(values, [0.99, 0.995, 1.0], rtol=1e-6)


def test_moco_v3_adds_both_directions():
    method, params, state, b = made("mocov3")
    views = method.preprocess(b["query"]), method.preprocess(b["key"])
    out, temperature = jax.jit(method.forward)(params, context_of(method, params, state), *views), 0.2
    pairs = (out["q1"], out["k2"]), (out["q2"], out["k1"])
    expected = sum(2 * temperature * losses.info_nce(q, k, temperature)[0] for q, k in pairs)
    np.testing.assert_allclose(out["loss"], expected, rtol=1e-5)


def test_the_bank_takes_turns():
    queue = losses.new_queue(jax.random.key(0), 6, 4)
    first = queue["keys"]
    for turn in range(3):
        keys = jax.random.normal(jax.random.key(turn + 1), (2, 4))
        queue = losses.enqueue(queue, keys)
        place = slice(2 * turn, 2 * turn + 2)
        np.testing.assert_allclose(queue["keys"][place], losses.l2_normalize(keys), rtol=1e-6)
        np.testing.assert_array_equal(queue["keys"][2 * turn + 2 :], first[2 * turn + 2 :])
    assert int(queue["pointer"]) == 0
    np.testing.assert_allclose(jnp.linalg.norm(queue["keys"], axis=1), 1.0, rtol=1e-6)


def test_macrl_enqueues_its_keys():
    _, before, after, _ = step_of("macrl")
    first, then = before.model_state["queue"], after.model_state["queue"]
    assert int(then["pointer"]) == (int(first["pointer"]) + 8) % len(first["keys"])
    np.testing.assert_array_equal(then["keys"][8:], first["keys"][8:])
    assert float(jnp.abs(then["keys"][:8] - first["keys"][:8]).max()) > 1e-2


def test_macrl_without_contrast_is_mae_on_both_views():
    off = {"contrast_weight": 0.0, "key_as_query": True, "reconstruction": "l2", "lambda_key": 0.5}
    method, params, _, b = made("macrl", **off)
    value, metrics, grads = run("macrl", **off)
    (query, of_query), (key, of_key) = (mae_loss(method, params, b, view) for view in ("query", "key"))
    np.testing.assert_allclose(value, query + 0.5 * key, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_rec_key"], key, rtol=1e-5)
    for part in ("encoder", "decoder"):
        both = jax.tree.map(lambda x, y: x + 0.5 * y, of_query[part], of_key[part])
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), grads[part], both)


def test_macrl_counts_absolute_errors():
    metrics = logged("macrl", loss_on="all")
    method, params, _, b = made("macrl", loss_on="all")
    masks = method.masks_of_view(b, method.views[1])
    latent = jax.jit(method.branch, static_argnums=2)(params, b, method.views[1])["latent"]
    pred = jax.jit(method.predict)(params, latent, *masks)
    patches = losses.normalize_patches(jnp.asarray(key_patches(method, b)))
    np.testing.assert_allclose(metrics["loss_rec_key"], jnp.abs(pred - patches).mean(), rtol=1e-5)


def key_patches(method, b):
    """The key view's normalised patches; it keeps its colours."""
    return masking.patchify(method.preprocess(b["key"]), method.patch)


def test_macrl_without_reconstruction_is_masked_moco():
    off = {"lambda_query": 0.0, "lambda_key": 0.0, "in_batch_negatives": False}
    value, metrics, grads = run("macrl", **off)
    np.testing.assert_allclose(value, metrics["contrast_loss"], rtol=1e-6)
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads["decoder"]))
    # By hand: MoCo's loss of the query's and the key's projections against the bank.
    method, params, state, b = made("macrl", **off)
    queue = state["queue"]
    out = jax.jit(lambda: method.forward(params, context_of(method, params, state), b))()
    q, k = (np.asarray(losses.l2_normalize(out[name]), np.float64) for name in ("z_query", "z_key"))
    logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ np.asarray(queue["keys"], np.float64).T], axis=1) / 0.2
    by_hand = (np.log(np.exp(logits).sum(axis=1)) - logits[:, 0]).mean()
    np.testing.assert_allclose(value, by_hand, rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "parts"),
    [("shared", None), ("ema_keys", {"encoder", "projector"}), ("ema_full", {"encoder", "projector", "decoder"})],
)
def test_the_modes_of_the_second_branch(mode, parts):
    method, params, _, _ = made("macrl", mode=mode)
    target = method.target_params(params)
    assert (target if target is None else set(target)) == parts
    value, _, grads = run("macrl", mode=mode, lambda_query=0.0, contrast_weight=0.0)
    assert np.isfinite(value)
    # With ema_full the second reconstruction is logged, and trains nothing.
    reached = float(jnp.abs(grads["decoder"]["mask_token"]).max()) > 0
    assert reached == (mode != "ema_full")


def test_shared_keys_carry_gradient_if_asked():
    only_contrast = {"mode": "shared", "lambda_query": 0.0, "lambda_key": 0.0}
    _, _, stopped = run("macrl", **only_contrast)
    _, _, flowing = run("macrl", **only_contrast, stop_grad_key=False)
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), stopped["projector"], flowing["projector"])
    assert max(jax.tree.leaves(difference)) > 1e-4


def test_roles_can_be_swapped_and_views_made_alike():
    query, key = create(tiny("macrl")).views
    assert (query.find(PatchMask).num_visible, key.find(PatchMask).num_visible) == (4, 8)
    assert (query.find(Color) is None, key.find(Color) is None) == (False, True)
    swapped = create(tiny("macrl", **{"method.swap_roles": True})).views
    assert (swapped[0].name, swapped[0].find(PatchMask).num_visible, swapped[0].find(Color)) == ("query", 8, None)
    alike = create(tiny("macrl", **{"method.key_as_query": True})).views
    assert alike[0].find(Color) == alike[1].find(Color)
    assert alike[0].crop.scale == alike[1].crop.scale


def test_the_clean_target_is_another_picture():
    painting = {"query_augment.jitter_p": 1.0}
    painted, clean = logged("macrl", **painting), logged("macrl", **painting, recon_target="clean")
    np.testing.assert_allclose(painted["loss_rec_key"], clean["loss_rec_key"], rtol=1e-6)  # the key keeps its colours
    assert abs(float(painted["loss_rec_query"] - clean["loss_rec_query"])) > 1e-3


def test_simclr_finds_the_other_view_at_its_temperature():
    method, params, state, b = made("simclr_vit", temperature=0.3)
    out = jax.jit(lambda: method.forward(params, context_of(method, params, state), method.images_of(b)))()
    z = np.asarray(losses.l2_normalize(out["z"]), np.float64)
    logits, other = z @ z.T / 0.3, (np.arange(16) + 8) % 16
    np.fill_diagonal(logits, -np.inf)
    by_hand = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), other]).mean()
    np.testing.assert_allclose(out["loss"], by_hand, rtol=1e-5)


def test_sizes_of_cmae_as_published():
    """Parameter counts of ViT-B/16, from the official model."""
    method = create(runpy.run_path(str(CONFIGS["cmae"]))["get_config"]("imagenet"))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    encoder_table, decoder_table = 197 * 768, 197 * 512  # the official counts include the fixed position tables
    assert counts["encoder"] + encoder_table == 85_798_656
    assert counts["decoder"] + decoder_table == 26_109_184
    assert counts["feature_decoder"] + decoder_table == 7_194_880
    assert (counts["projector"], counts["predictor"]) == (1_577_472, 791_040)
    assert sum(counts.values()) == 121_118_208
    target = sum(leaf.size for leaf in jax.tree.leaves(method.target_params(params)["encoder"]))
    assert target + encoder_table == 85_797_120
    query, key = method.views
    assert (query.crop.master, query.crop.size, query.crop.shift, key.crop.shift) == ((256, 256), (224, 224), 0, 31)
    assert (query.find(PatchMask).num_patches, query.find(PatchMask).num_visible) == (196, 68)


def test_sizes_of_moco_v3_as_published():
    method = create(runpy.run_path(str(CONFIGS["mocov3"]))["get_config"]("imagenet"))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    assert (counts["projector"], counts["predictor"]) == (20_987_904, 2_105_344)


def test_a_collapse_is_seen_in_the_metrics():
    constant = losses.spread(jnp.ones((8, 4)))
    assert (float(constant["feature_std"]), float(constant["effective_rank"])) == (0.0, 0.0)


def test_effective_rank_in_closed_form():
    eigenvalues = np.array([4.0, 2.0, 1.0])
    base = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 4)) - 0.0)[0]
    base = np.linalg.qr(np.concatenate([np.ones((64, 1)), base], axis=1))[0][:, 1:4]  # columns of mean 0
    features = jnp.asarray(base * np.sqrt(eigenvalues), jnp.float32)
    np.testing.assert_allclose(losses.effective_rank(features), 49 / 21, rtol=1e-4)
    np.testing.assert_allclose(losses.effective_rank(jnp.tile(features, (1, 40))), 49 / 21, rtol=1e-4)
