"""MAE and ccMIM: what each switch does, what no gradient reaches, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import tiny

from maskcl_jax.errors import UserError
from maskcl_jax.methods import METHODS, create

N = 16  # patches of `tiny`


def batch(seed=0, b=8):
    rng = np.random.default_rng(seed)
    noise = rng.random((b, N), dtype=np.float32)
    order = noise.argsort(axis=1).astype(np.int32)
    return {
        "image": rng.integers(0, 256, (b, 32, 32, 3), dtype=np.uint8),
        "mask_noise": noise,
        "visible": order[:, :4],
        "masked": order[:, 4:],
    }


def made(name="ccmim", **overrides):
    method = create(tiny(name, **{f"method.{k}": v for k, v in overrides.items()}))
    params, state = method.init(jax.random.key(0))
    return method, params, state


def loss_and_grads(method, params, state, b):
    def loss(params):
        return method.loss(params, None, state, b, jax.random.key(0))

    (value, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, aux, grads


def test_random_masks_without_alignment_are_mae():
    method, params, state = made(masking="random", align_weight=0.0)
    mae = create(tiny("mae"))
    got, _, grads = loss_and_grads(method, params, state, batch())
    expected, _, mae_grads = loss_and_grads(mae, {k: params[k] for k in ("encoder", "decoder")}, {}, batch())
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), {k: grads[k] for k in mae_grads}, mae_grads)


@pytest.mark.parametrize(("align_grad", "reached"), [("stop", False), ("both", True)])
def test_the_gradient_stops_at_the_masked_branch(align_grad, reached):
    method, params, state = made(align_grad=align_grad)
    b = batch()
    images = method.normalized(b["image"])

    def alignment(images):
        return method.step(params, state, images, b)["loss_align"]

    chosen = method.choose(params, images, b)
    grad = jax.grad(alignment)(images)
    patches = np.abs(np.asarray(grad)).reshape(8, 4, 8, 4, 8, 3).sum(axis=(2, 4, 5)).reshape(8, N)
    hidden = np.take_along_axis(patches, np.asarray(chosen["masked"]), axis=1)
    shown = np.take_along_axis(patches, np.asarray(chosen["visible"]), axis=1)
    assert (hidden.max() > 0) == reached
    assert shown.min() > 0


def test_attention_is_a_share_of_each_block():
    method, params, _ = made()
    per_layer = method.attention(params, method.normalized(batch()["image"]))
    assert per_layer.shape == (2, 8, N)
    assert bool(jnp.all((per_layer.sum(axis=-1) > 0) & (per_layer.sum(axis=-1) < 1)))


@pytest.mark.parametrize("masking", ["importance", "random", "gumbel", "topk"])
def test_every_rule_splits_all_patches(masking):
    method, params, _ = made(masking=masking)
    b = batch()
    chosen = method.choose(params, method.normalized(b["image"]), b)
    assert chosen["visible"].shape == (8, 4)
    both = np.concatenate([chosen["visible"], chosen["masked"]], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(N), (8, 1)))
    assert method.views[0].mask.kind == ("random" if masking == "random" else "noise")


def test_layers_choose_whose_attention_counts():
    method, params, _ = made()
    images = method.normalized(batch()["image"])
    last, _, _ = made(importance_layers=(-1,))
    np.testing.assert_allclose(last.attention(params, images)[0], method.attention(params, images)[1], rtol=1e-5)


def test_the_weight_scales_the_alignment():
    values = {}
    for weight in (0.0, 0.1, 1.0):
        method, params, state = made(align_weight=weight)
        values[weight], aux, _ = loss_and_grads(method, params, state, batch())
    np.testing.assert_allclose(values[1.0] - values[0.0], aux.metrics["loss_align"], rtol=1e-5)
    np.testing.assert_allclose(values[0.1] - values[0.0], 0.1 * aux.metrics["loss_align"], rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["align_chance"], np.log(8), rtol=1e-6)  # 2 T = 1


def test_without_projector_the_tokens_themselves_are_contrasted():
    method, params, state = made(projector=False)
    assert "projector" not in params
    assert state == {}
    out = method.step(params, state, method.normalized(batch()["image"]), batch())
    np.testing.assert_array_equal(out["proj_v"], out["cls_v"])


def test_norm_groups_change_the_alignment_and_not_the_reconstruction():
    metrics = []
    for group in (0, 4):
        method, params, state = made(bn_group_size=group)
        metrics.append(loss_and_grads(method, params, state, batch())[1].metrics)
    np.testing.assert_allclose(metrics[0]["loss_rec"], metrics[1]["loss_rec"], rtol=1e-6)
    assert abs(float(metrics[0]["loss_align"] - metrics[1]["loss_align"])) > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_keeps_the_loss_in_float32(name):
    c = tiny(name, dtype="bfloat16")
    method = create(c)
    params, state = method.init(jax.random.key(0))
    value, _, grads = loss_and_grads(method, params, state, batch())
    exact, _, _ = loss_and_grads(create(tiny(name)), params, state, batch())
    assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(value, exact, rtol=2e-2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((16, 48), 1), ((24, 32), 4)])
def test_features_and_pictures_of_any_shape(name, size, channels):
    c = tiny(name, **{"data.image_size": size, "data.channels": channels})
    c.data.mean, c.data.std = (0.5,), (0.25,)
    method = create(c)
    params, state = method.init(jax.random.key(0))
    count, visible = method.num_patches, method.num_visible
    noise = np.random.default_rng(0).random((3, count), dtype=np.float32)
    order = noise.argsort(axis=1)
    b = {
        "image": np.random.default_rng(1).integers(0, 256, (3, *size, channels), dtype=np.uint8),
        "mask_noise": noise,
        "visible": order[:, :visible],
        "masked": order[:, visible:],
    }
    for kind in ("mean", "cls"):
        features = method.features(params, state, b["image"], kind=kind)
        assert features.shape == (3, 32)
        assert features.dtype == jnp.float32
    pictures = method.pictures(params, state, b)
    assert set(pictures) == set(method.picture_names)
    for name_, picture in pictures.items():
        assert picture.shape[:3] == (3, *size), name_
        assert float(picture.min()) >= 0.0
        assert float(picture.max()) <= 1.0
    np.testing.assert_allclose(pictures["input"], b["image"] / 255.0, atol=1e-5)


def test_a_perfect_prediction_is_drawn_as_the_image():
    method, params, state = made("mae")
    b = batch()
    perfect = method.forward

    def forward(params, images, visible, masked):
        from maskcl_jax import losses, masking

        out = perfect(params, images, visible, masked)
        return {**out, "pred": losses.normalize_patches(masking.patchify(images, method.patch))}

    method.forward = forward
    drawn = method.pictures(params, state, b)
    np.testing.assert_allclose(drawn["reconstruction"], drawn["input"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("mae", "model.patch_size", 5, r"patch_size=5 does not divide data\.image_size=32x32"),
        ("mae", "model.heads", 3, r"model\.heads=3 does not divide model\.width=32"),
        ("mae", "model.width", 30, r"model\.width=30 is not divisible by 4"),
        ("mae", "method.decoder.heads", 3, r"method\.decoder\.heads=3"),
        ("mae", "method.mask_ratio", 0.99, r"mask_ratio=0\.99 leaves 0 of 16"),
        ("mae", "method.mask_ratio", 0.0, r"mask_ratio=0\.0 leaves 16 of 16"),
        ("mae", "method.mask_ratio", 1.5, r"mask_ratio=1\.5 leaves"),
        ("mae", "method.name", "mea", r"method\.name='mea'"),
        ("ccmim", "method.masking", "magic", r"method\.masking='magic'"),
        ("ccmim", "method.align_grad", "half", r"method\.align_grad='half'"),
        ("ccmim", "method.importance_layers", (2,), r"importance_layers=\(2,\)"),
        ("ccmim", "method.temperature", 0.0, r"method\.temperature=0\.0"),
        ("ccmim", "method.bn_group_size", 3, r"bn_group_size=3 does not divide batch_size=8"),
        ("ccmim", "batch_size", 1, r"batch_size=1"),
    ],
)
def test_what_cannot_work_is_named(name, field, value, words):
    c = tiny(name)
    if field == "model.width":
        c.model.heads = 2
    c.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        create(c)
