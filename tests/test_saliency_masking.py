"""Saliency-guided masking: what fills masked cells, whose hard negative is whose, what it reduces to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import context_of, loss_and_grads
from helpers.tiny import colourless, filled, tiny
from helpers.views import batch_of, sampled, view_of

from maskcl_jax.errors import UserError
from maskcl_jax.methods import create
from maskcl_jax.ops import cells, fills, losses
from maskcl_jax.views.cell_mask import CellMask, CellRule

RNG = np.random.default_rng(0)


@functools.cache
def made(name="saliency_masking", **overrides):
    """(method, params, state, batch) of a tiny one."""
    method = create(tiny(name, **colourless(name) | {f"method.{k}": v for k, v in overrides.items()}))
    return method, *filled(method), batch_of(method)


def seen_by(method, batch, seed=0):
    """(clean inputs, {name: inputs as the encoders see them})."""
    clean = method.images_of(batch)
    return clean, method.masked_images(clean, batch, jax.random.key(seed))


@pytest.mark.parametrize(("side", "sigma", "taps"), [(224, 5.0, 11), (224, 10.0, 31), (40, 1.5, 5)])
def test_blur_is_torchvisions(side, sigma, taps):
    pytest.importorskip("torch")
    functional = pytest.importorskip("torchvision.transforms.functional")
    import torch

    images = RNG.normal(size=(2, side, 48, 3)).astype(np.float32)
    theirs = functional.gaussian_blur(torch.tensor(images.transpose(0, 3, 1, 2)), [taps, taps], [sigma, sigma])
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    blurred, passed = jax.jit(lambda x: (fills.blur(x, sigma, taps), fills.high_pass(x, sigma, taps)))(images)
    np.testing.assert_allclose(blurred, theirs, atol=1e-5)
    np.testing.assert_allclose(passed, images - theirs, atol=1e-5)


def test_kernels_shrink_with_the_images():
    assert fills.kernel_at(224, 5.0, 11) == (5.0, 11)
    assert fills.kernel_at(224, 10.0, 31) == (10.0, 31)
    assert fills.kernel_at(448, 5.0, 11) == (10.0, 21)
    assert fills.kernel_at(32, 5.0, 11) == (1.0, 3)
    # A kernel far narrower than a pixel has no taps but those that count.
    assert fills.kernel_at(32, 1e-3, 11) == fills.kernel_at(224, 1e-3, 11) == (1.0, 13)
    sigma, taps = fills.kernel_at(32, 10.0, 31)
    assert (round(sigma, 3), taps) == (1.429, 5)


@pytest.mark.parametrize(("masked", "which"), [("query", (0,)), ("key", (1,)), ("both", (0, 1)), ("none", ())])
def test_which_branch_is_masked(masked, which):
    method, _, _, b = made(masked=masked, strategy="mean")
    clean, seen = seen_by(method, b)
    for i, name in enumerate(("query", "key")):
        assert bool(jnp.array_equal(clean[i], seen[name])) == (i not in which)
    assert set(seen) == {"query", "key", "negative"}
    assert (f"{masked}_cells" in b) == (masked in ("query", "key"))


def test_the_mean_and_the_blur_fill_cells():
    for strategy in ("mean", "blur"):
        method, _, _, b = made(strategy=strategy)
        clean, seen = seen_by(method, b)
        for name, of in (("query", clean[0]), ("negative", clean[1])):
            x = np.asarray(of)
            hidden = np.repeat(np.repeat(b[f"{name}_cells"], 4, axis=1), 4, axis=2)
            assert hidden.shape == (8, 32, 32, 1)
            filling = x.mean(axis=(1, 2), keepdims=True) if strategy == "mean" else fills.blur(of, 10 / 7, 5)
            np.testing.assert_allclose(seen[name], np.where(hidden, filling, x), atol=1e-5)
        assert not b["query_window"].any()


def test_high_pass_puts_noise_into_cells_and_windows():
    method, _, _, b = made(focal_p=0.5, noise_std=0.18, negative_noise_std=0.14)
    clean, seen = seen_by(method, b)
    for name, of, std, keep in (("query", clean[0], 0.18, True), ("negative", clean[1], 0.14, False)):
        window, changed = b[f"{name}_window"], np.asarray(seen[name] != of)
        side = 29 if keep else 19  # 200 and 130 of 224, at 32 pixels
        assert {0, side} == set(window[:, 2])
        for i, (top, left, height, width) in enumerate(window):
            inside = np.zeros((32, 32), bool)
            inside[top : top + height, left : left + width] = True
            expected = ~inside if keep else inside
            marked = b[f"{name}_cells"][i].repeat(4, axis=0).repeat(4, axis=1)
            np.testing.assert_array_equal(changed[i], expected[..., None].repeat(3, -1) if height else marked)
        noise = np.asarray(seen[name])[changed]
        assert abs(noise.std() / std - 1) < 0.05
        assert abs(noise.mean()) < 0.02
    np.testing.assert_allclose(clean[0], fills.high_pass(method.framework.images_of(b)[0], 20 / 7, 13), atol=1e-6)


def test_noise_is_tiled_if_asked():
    for tile in (True, False):
        method, _, _, b = made(tile_noise=tile, focal_p=0.0, channelwise_p=0.0)
        _, seen = seen_by(method, b)
        marked = (
            np.asarray(seen["negative"])
            .reshape(8, 8, 4, 8, 4, 3)
            .transpose(0, 1, 3, 2, 4, 5)[b["negative_cells"][..., 0]]
        )
        assert bool((marked == marked[:1]).all()) == tile


def test_mscn_masks_both_views_without_regard_to_the_image():
    method, _, _, b = made("mscn")
    assert set(seen_by(method, b)[1]) == {"query", "key"}
    assert (b["query_activation"] == 1).all()
    assert method.picture_names == ("query", "query_saliency", "query_masked", "key", "key_saliency", "key_masked")
    spatial = b["key_window"][:, 2] == 0
    counts = b["key_cells"][spatial].sum(axis=(1, 2))
    assert (counts.min() >= 3, counts.max() <= 16) == (True, True)


@pytest.mark.parametrize("framework", ["moco_v2", "simclr"])
def test_without_masks_and_hard_negatives_it_is_the_framework(framework):
    method, params, state, b = made(framework=framework, masked="none", num_hard=0, strategy="mean")
    c = tiny(framework)
    c.method.update({k: v for k, v in method.config.method.items() if k in c.method and k != "name"})
    plain = create(c)
    assert plain.config.method.bn_group_size == method.config.method.bn_group_size
    context = context_of(plain, params, state)
    # Loss, and all that a step leaves: statistics, queue.
    got, expected = (jax.jit(lambda b, method=m: method.loss(params, b, context))(b) for m in (method, plain))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@functools.cache
def compiled_step():
    """(method, params, context, images) and the compiled step of images, with BatchNorm in two groups of four."""
    method, params, state, b = made(shuffle_bn=False, num_hard=2, hard_weight=2.0)
    context = context_of(method, params, state)

    def step(params, target, images):
        out = method.forward(params, context._replace(target_params=target), images)
        return {k: out[k] for k in ("loss", "q_raw", "k_raw", "hard_raw", "logits")} | out["model_state"]

    _, images = seen_by(method, b)
    return method, params, context, images, jax.jit(step)


def test_the_loss_with_hard_negatives_by_hand():
    method, params, context, images, step = compiled_step()
    out = step(params, context.target_params, images)

    def unit(x):
        x = np.asarray(x, np.float64)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    q, k, hard = unit(out["q_raw"]), unit(out["k_raw"]), unit(out["hard_raw"])
    assert hard.shape == (8, 2, 16)
    before = context.model_state["queue"]["keys"]
    keys = np.asarray(before, np.float64)
    rows = [np.concatenate([[q[i] @ k[i]], keys @ q[i], 2.0 * hard[i] @ q[i]]) for i in range(8)]
    logits = np.array(rows) / method.config.method.temperature
    np.testing.assert_allclose(out["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(out["loss"], (np.log(np.exp(logits).sum(axis=1)) - logits[:, 0]).mean(), rtol=1e-5)
    # Keys enter the queue, hard negatives do not.
    np.testing.assert_allclose(out["queue"]["keys"][:8], k, atol=1e-5)
    np.testing.assert_array_equal(out["queue"]["keys"][8:], before[8:])


def test_every_image_has_hard_negatives_of_its_own():
    """The released script gives image 0's to the whole batch."""
    _, params, context, images, step = compiled_step()
    before = step(params, context.target_params, images)
    noise = jax.random.normal(jax.random.key(3), images["negative"].shape[1:])
    changed = images | {"negative": images["negative"].at[0].add(noise)}
    after = step(params, context.target_params, changed)
    # Images 1 to 3 share their BatchNorm statistics with image 0, the second group shares nothing.
    np.testing.assert_array_equal(before["logits"][4:], after["logits"][4:])
    np.testing.assert_array_equal(before["logits"][:, :17], after["logits"][:, :17])
    assert abs(before["logits"] - after["logits"])[0, 17] > 1e-3
    rows = np.asarray(losses.l2_normalize(before["hard_raw"]))[:, 0]
    assert np.unique(rows.round(4), axis=0).shape[0] == 8
    assert abs(before["hard_raw"][:, 0] - before["hard_raw"][:, 1]).max() > 1e-3


def test_no_gradient_reaches_keys_and_hard_negatives():
    method, params, context, images, _ = compiled_step()

    def loss(target, others):
        return method.forward(params, context._replace(target_params=target), images | others)["loss"]

    others = {name: images[name] for name in ("key", "negative", "negative2")}
    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(context.target_params, others)
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads))


def test_nt_xent_with_hard_negatives():
    first, second, hard = (RNG.normal(size=size) for size in ((3, 7), (3, 7), (6, 2, 7)))
    z = np.concatenate([first, second])
    z, hard = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, hard))
    for count in (3, 6):
        costs = []
        for i, row in enumerate(z @ z.T):
            others = [row[j] for j in range(6) if j != i] + [2.0 * z[i] @ h for h in hard[i] if i < count]
            costs.append(np.log(np.exp(np.array(others) / 0.2).sum()) - row[(i + 3) % 6] / 0.2)
        arrays = map(jnp.asarray, (first, second))
        loss, _ = losses.nt_xent(*arrays, 0.2, hard=jnp.asarray(hard[:count]), hard_weight=2.0)
        np.testing.assert_allclose(loss, np.mean(costs), rtol=1e-5)


def test_simclrs_hard_negatives():
    """Off by default: gradient through them, and those of the second view's anchors."""
    results = []
    for options in ({}, {"hard_grad": True}, {"hard_both": True}, {"num_hard": 0}):
        method, params, state, b = made(framework="simclr", strategy="mean", **options)
        # The projector says it all, and compiles in a tenth of the time.
        method.framework.embed = lambda params, stats, images: (images[:, ::8, ::4, 0].reshape(-1, 32), stats)
        results.append(loss_and_grads(method, params, state, b))
        assert ("negative_back_cells" in b) == ("hard_both" in options)
    (value, aux, grads), (with_grad, _, other_grads), (both, _, _), (without, plain, _) = results
    np.testing.assert_allclose(value, with_grad, rtol=1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), grads, other_grads)
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert float(both) > float(value) > float(without)  # one more term in the denominators
    # Running statistics are of the two views alone.
    jax.tree.map(np.testing.assert_array_equal, aux.model_state, plain.model_state)


def test_the_target_chooses_after_the_warm_up():
    method, params, state, b = made(provider="ema", ema_warmup=0.25, focal_p=0.0)
    clean = method.images_of(b)

    def choose(progress):
        return method.cells_by_target(context_of(method, params, state, progress), clean, b)

    choose = jax.jit(choose)
    early, late = choose(0.2), choose(0.25)
    for name in ("query", "negative"):
        np.testing.assert_array_equal(early[name], b[f"{name}_cells"])
        assert not np.array_equal(late[name], b[f"{name}_cells"])
    variables = {"params": params["encoder"], "batch_stats": state["target_batch_stats"]["encoder"]}
    for name, images, rule in zip(
        ("query", "negative"), clean, [v.find(CellMask).rules[0] for v in method.views], strict=True
    ):
        seen = np.asarray(method.encoder.apply(variables, images, train=False)).sum(axis=-1)
        scda = np.asarray(jax.image.resize(seen, (8, 8, 8), "linear"))
        options = {"spread": 0.6, "background": name == "query", "cap": rule.cap}
        expected = cells.choose(scda, b[f"{name}_noise"], b[f"{name}_ratio"], **options, xp=np)
        assert (np.asarray(late[name]) != expected).mean() < 0.01  # a tie with the threshold may fall either way


def test_features_are_of_high_passed_images():
    b = RNG.integers(0, 200, (3, 32, 32, 3), dtype=np.uint8)
    for strategy, blind in (("high_pass", True), ("mean", False)):
        method, params, state, _ = made(strategy=strategy)
        features = jax.jit(functools.partial(method.features, kind="mean"))
        difference = features(params, state, b) - features(params, state, b + np.uint8(40))
        assert (float(jnp.abs(difference).max()) < 1e-4) == blind


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("method.grid", 5, r"method\.grid=5 does not divide data\.image_size=32x32.*8 for 32"),
        ("method.grid", 1, r"method\.grid=1 does not divide"),
        ("method.ratio", (0.3, 0.2), r"method\.ratio=\(0\.3, 0\.2\) is not a range: use 0 <= low <= high <= 1"),
        ("method.negative_ratio", (0.4, 1.2), r"method\.negative_ratio=\(0\.4, 1\.2\)"),
        ("method.provider", "dino", r"method\.provider='dino' is unknown: use one of boundary, .*maps, ema"),
        ("method.strategy", "zero", r"method\.strategy='zero' is unknown: use one of high_pass, blur, mean"),
        ("method.framework", "byol", r"method\.framework='byol' is unknown: use one of moco_v2, simclr"),
        ("method.masked", "all", r"method\.masked='all' is unknown: use one of query, key, both, none"),
        ("method.provider", "maps", r"provider='maps' with data\.source='synthetic' and method\.maps_path=''"),
        ("method.focal_p", 1.5, r"method\.focal_p=1\.5"),
        ("method.focal_window", 300, r"method\.focal_window=300 is out of range: use 1 to 224"),
        ("method.negative_window", 0, r"method\.negative_window=0"),
        ("method.ema_warmup", -0.1, r"method\.ema_warmup=-0\.1"),
        ("method.blur.taps", 30, r"method\.blur: sigma=10\.0, taps=30 is no kernel"),
        ("method.high_pass.sigma", 0.0, r"method\.high_pass: sigma=0\.0"),
        ("method.num_hard", -1, r"method\.num_hard=-1"),
        ("method.symmetric", True, r"method\.symmetric=True"),
        ("method.queue_size", 12, r"queue_size=12 is not a multiple"),
    ],
)
def test_what_cannot_work_is_named(field, value, words):
    c = tiny("saliency_masking")
    c.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        create(c)


def test_simclr_has_no_ema_encoder_to_ask():
    c = tiny("saliency_masking", **{"method.framework": "simclr", "method.provider": "ema"})
    with pytest.raises(UserError, match=r"provider='ema' with method\.framework='simclr'"):
        create(c)
    c = tiny("mae")
    c.method = tiny("saliency_masking").method
    with pytest.raises(UserError, match="needs a ResNet"):
        create(c)


def test_focal_masks_come_as_often_as_asked():
    rule = CellRule(name="query", ratio=(0.05, 0.25), focal_p=0.2, window=(6, 6))
    mask = CellMask(grid=4, provider="uniform", spread=0.6, rules=(rule,))
    batch = sampled(view_of((16, 16), mask), range(4000), images=np.zeros((4000, 16, 16, 3), np.uint8))
    focal = batch["query_window"][:, 2] > 0
    assert abs(focal.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)
    assert not batch["query_cells"][focal].any()
