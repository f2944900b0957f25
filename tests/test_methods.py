"""All methods: shapes, precision, what is refused. MAE and ccMIM: what each switch does, what no gradient reaches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import context_of, loss_and_grads, metrics_of
from helpers.tiny import filled, quick, tiny
from helpers.views import batch_of

from maskcl_jax.errors import UserError
from maskcl_jax.methods import METHODS, create
from maskcl_jax.ops import losses, masking
from maskcl_jax.views.color import Color
from maskcl_jax.views.patch_mask import PatchMask

N = 16  # patches of `tiny`


def batch():
    """One view, with a mask and with noise: for MAE and ccMIM alike."""
    mae, ccmim = create(tiny("mae")), create(tiny("ccmim"))
    return batch_of(ccmim) | batch_of(mae)


def made(name="ccmim", **overrides):
    depth = {"model.depth": 2} if name == "ccmim" else {}
    method = create(tiny(name, **depth, **{f"method.{k}": v for k, v in overrides.items()}))
    return method, *filled(method)


def test_random_masks_without_alignment_are_mae():
    method, params, state = made(masking="random", align_weight=0.0)
    mae = create(tiny("mae", **{"model.depth": 2}))
    got, _, grads = loss_and_grads(method, params, state, batch())
    expected, _, mae_grads = loss_and_grads(mae, {k: params[k] for k in ("encoder", "decoder")}, {}, batch())
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), {k: grads[k] for k in mae_grads}, mae_grads)


@pytest.mark.parametrize(("align_grad", "reached"), [("stop", False), ("both", True)])
def test_the_gradient_stops_at_the_masked_branch(align_grad, reached):
    method, params, state = made(align_grad=align_grad)
    b = batch()
    images = method.preprocess(b["image"])

    def alignment(images):
        return method.forward(params, state["batch_stats"], images, b)["loss_align"]

    chosen = jax.jit(method.choose)(params, images, b)
    grad = jax.jit(jax.grad(alignment))(images)
    patches = np.abs(np.asarray(grad)).reshape(8, 4, 8, 4, 8, 3).sum(axis=(2, 4, 5)).reshape(8, N)
    hidden = np.take_along_axis(patches, np.asarray(chosen["masked"]), axis=1)
    shown = np.take_along_axis(patches, np.asarray(chosen["visible"]), axis=1)
    assert (hidden.max() > 0) == reached
    assert shown.min() > 0


def test_attention_is_a_share_of_each_block():
    method, params, _ = made()
    per_layer = jax.jit(method.attention)(params, method.preprocess(batch()["image"]))
    assert per_layer.shape == (2, 8, N)
    assert bool(jnp.all((per_layer.sum(axis=-1) > 0) & (per_layer.sum(axis=-1) < 1)))


@pytest.mark.parametrize("masking", ["importance", "random", "gumbel", "topk"])
def test_every_rule_splits_all_patches(masking):
    method, params, _ = made(masking=masking)
    b = batch()
    chosen = jax.jit(method.choose)(params, method.preprocess(b["image"]), b)
    assert chosen["visible"].shape == (8, 4)
    both = np.concatenate([chosen["visible"], chosen["masked"]], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.tile(np.arange(N), (8, 1)))
    assert method.views[0].find(PatchMask).kind == ("random" if masking == "random" else "noise")


def test_layers_choose_whose_attention_counts():
    method, params, _ = made()
    images = method.preprocess(batch()["image"])
    last, _, _ = made(importance_layers=(-1,))
    both = jax.jit(method.attention)(params, images)
    np.testing.assert_allclose(jax.jit(last.attention)(params, images)[0], both[1], rtol=1e-5)


def test_the_weight_scales_the_alignment():
    found = {}
    for weight in (0.0, 0.3):
        method, params, state = made(align_weight=weight)
        found[weight] = metrics_of(method, params, state, batch())
    alignment = found[0.3]["loss_align"]
    np.testing.assert_allclose(found[0.3]["loss"] - found[0.0]["loss"], 0.3 * alignment, rtol=1e-5)
    np.testing.assert_allclose(found[0.3]["align_chance"], np.log(8), rtol=1e-6)  # 2 T = 1


def test_without_projector_the_tokens_themselves_are_contrasted():
    method, params, state = made(projector=False)
    assert "projector" not in params
    assert state == {"batch_stats": {}}
    out = jax.jit(method.forward)(params, {}, method.preprocess(batch()["image"]), batch())
    np.testing.assert_array_equal(out["proj_v"], out["cls_v"])


def test_norm_groups_change_the_alignment_and_not_the_reconstruction():
    metrics = []
    for group in (0, 4):
        method, params, state = made(bn_group_size=group)
        metrics.append(metrics_of(method, params, state, batch()))
    np.testing.assert_allclose(metrics[0]["loss_rec"], metrics[1]["loss_rec"], rtol=1e-6)
    assert abs(float(metrics[0]["loss_align"] - metrics[1]["loss_align"])) > 1e-4


@pytest.mark.parametrize("name", [*METHODS, "simclr_vit"])
def test_bfloat16_keeps_the_loss_in_float32(name):
    exact, half = create(quick(name)), create(quick(name, dtype="bfloat16"))
    params, state = filled(exact)
    context, b = context_of(exact, params, state), batch_of(exact)

    def loss(method, params):
        return method.loss(params, b, context).loss

    values = [jax.jit(functools.partial(loss, method))(params) for method in (exact, half)]
    assert {value.dtype for value in values} == {jnp.dtype("float32")}
    np.testing.assert_allclose(values[1], values[0], rtol=2e-2)
    grads = jax.eval_shape(jax.grad(functools.partial(loss, half)), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("size", "channels"), [((16, 48), 1), ((24, 32), 4)])
def test_features_and_pictures_of_any_shape(name, size, channels):
    c = tiny(name, **{"data.image_size": size, "data.channels": channels})
    c.data.mean, c.data.std = (0.5,), (0.25,)
    method = create(c)
    b, first = batch_of(method, 3), method.views[0].name

    def look(params, state, b):
        features = [method.features(params, state, b[first], kind=kind) for kind in method.feature_kinds]
        return features, method.pictures(params, state, b)

    features, pictures = jax.jit(look)(*filled(method), b)
    assert {(f.shape, f.dtype) for f in features} == {
        ((3, 32), jnp.dtype("float32"))
    }  # 32 wide: a ViT of that, 8 x 4 channels
    assert set(pictures) == set(method.picture_names)
    for name_, picture in pictures.items():
        assert picture.shape[:3] == (3, *size), name_
        assert float(picture.min()) >= 0.0
        assert float(picture.max()) <= 1.0
    if method.views[0].find(Color) is None:
        np.testing.assert_allclose(pictures[method.picture_names[0]], b[first] / 255.0, atol=1e-5)


def test_mae_counts_the_masked_patches_alone():
    method, params, _ = made("mae")
    images, visible, masked = method.preprocess(batch()["image"]), batch()["visible"], batch()["masked"]
    out = jax.jit(method.reconstruct)(params, images, visible, masked)
    every = jax.jit(method.predict)(params, out["latent"], visible, masked)
    errors = (every - losses.normalize_patches(masking.patchify(images, method.patch))) ** 2
    hidden = np.ones((len(images), N), bool)
    np.put_along_axis(hidden, np.asarray(visible), False, axis=1)
    np.testing.assert_allclose(out["loss"], np.asarray(errors)[hidden].mean(), rtol=1e-5)


def test_a_perfect_prediction_is_drawn_as_the_image():
    method, params, state = made("mae")
    b = batch()
    patches = masking.patchify(method.preprocess(b["image"]), method.patch)
    method.predict = lambda *_: losses.normalize_patches(patches)
    drawn = jax.jit(method.pictures)(params, state, b)
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
        ("mae", "eval.feature", "max", r"eval\.feature='max' is unknown: use one of mean, cls"),
        ("ccmim", "method.masking", "magic", r"method\.masking='magic'"),
        ("ccmim", "method.align_grad", "half", r"method\.align_grad='half'"),
        ("ccmim", "method.importance_layers", (1,), r"importance_layers=\(1,\)"),
        ("ccmim", "method.temperature", 0.0, r"method\.temperature=0\.0"),
        ("ccmim", "method.bn_group_size", 3, r"bn_group_size=3 does not divide batch_size=8"),
        ("ccmim", "batch_size", 1, r"batch_size=1"),
        ("cmae", "method.temperature", 0.0, r"method\.temperature=0\.0"),
        ("cmae", "method.momentum", 1.01, r"method\.momentum=1\.01 is out of range: use 0\.0 to 1\.0"),
        ("cmae", "method.momentum_schedule", "linear", r"momentum_schedule='linear'"),
        ("cmae", "method.mask_block", 3, r"mask_block=3 does not divide the 4x4 grid"),
        ("cmae", "method.pixel_shift", 60, r"pixel_shift=60 does not fit method\.master_size=256.*use 0 to 32"),
        ("cmae", "method.pixel_shift", -1, r"pixel_shift=-1"),
        ("cmae", "method.contrast", "triplet", r"method\.contrast='triplet'"),
        ("cmae", "method.feature_decoder.kind", "big", r"feature_decoder\.kind='big'"),
        ("cmae", "method.feature_decoder.heads", 3, r"method\.feature_decoder\.heads=3"),
        ("cmae", "method.target_augment.hue", 0.7, r"target_augment\.hue=0\.7 is out of range: use 0\.0 to 0\.5"),
        ("cmae", "method.target_augment.blur_sigma", (0.1, 9.0), r"target_augment\.blur_sigma=\(0\.1, 9\.0\)"),
        ("mocov3", "method.query_augment.grey_p", 1.2, r"query_augment\.grey_p=1\.2"),
        ("mocov3", "method.bn_group_size", 3, r"bn_group_size=3 does not divide batch_size=8"),
        ("macrl", "method.queue_size", 12, r"queue_size=12 is not a multiple of batch_size=8: use for instance 8"),
        ("macrl", "method.mode", "both", r"method\.mode='both'"),
        ("macrl", "method.mask_ratio_key", 0.9, r"mask_ratio_key=0\.9 is above method\.mask_ratio=0\.75"),
        ("macrl", "method.mask_ratio_key", 0.0, r"mask_ratio_key=0\.0 with method\.swap_roles=False leaves nothing"),
        ("moco_v2", "method.queue_size", 12, r"queue_size=12 is not a multiple of the 8 keys.*use for instance 8"),
        ("moco_v2", "method.symmetric", True, r"queue_size=8 is not a multiple of the 16 keys"),
        ("moco_v2", "method.projector.layers", 0, r"projector\.layers=0"),
        ("moco_v2", "model.depth", 19, r"model\.depth=19 is unknown: use one of 10, 14, 18, 34, 50, 101"),
        ("moco_v2", "model.stem", "big", r"model\.stem='big'"),
        ("moco_v2", "eval.feature", "cls", r"eval\.feature='cls' is unknown: use one of mean"),
        ("maskco", "method.regions", 0, r"method\.regions=0 is out of range: use 1 or more"),
        (
            "maskco",
            "method.regions",
            3,
            r"queue_size=16 is not a multiple of the 24 keys of a step \(batch_size=8, 3 an",
        ),
        ("maskco", "method.extra_regions", -1, r"extra_regions=-1"),
        ("maskco", "method.extra_regions", 1, r"extra_regions=1 without method\.same_image_negatives"),
        ("maskco", "method.same_image_negatives", True, r"leaves no other region: set method\.extra_regions=1"),
        ("maskco", "method.box_side", (0.5, 1.2), r"box_side=\(0\.5, 1\.2\) is out of range"),
        ("maskco", "method.box_side", (0.5, 0.4), r"box_side=\(0\.5, 0\.4\) is out of range"),
        ("maskco", "method.box_side", (0.0, 0.4), r"box_side=\(0\.0, 0\.4\) is out of range"),
        ("maskco", "method.box_ratio", (1.5, 2.0), r"box_ratio=\(1\.5, 2\.0\) is out of range"),
        ("maskco", "method.fill", "black", r"method\.fill='black' is unknown: use one of zero, noise, mean"),
        (
            "maskco",
            "method.mask_head.branch",
            "key",
            r"mask_head\.branch='key' is unknown: use one of query, both, none",
        ),
        ("maskco", "method.mask_head.blocks", 0, r"mask_head\.blocks=0"),
        ("maskco", "method.roi_size", 0, r"roi_size=0"),
        ("maskco", "method.negative_iou", 1.5, r"negative_iou=1\.5"),
        ("maskco", "method.bn_group_size", 3, r"bn_group_size=3 does not divide batch_size=8"),
    ],
)
def test_what_cannot_work_is_named(name, field, value, words):
    c = tiny(name)
    if field == "model.width":
        c.model.heads = 2
    if field == "method.symmetric":
        c.method.queue_size = 8
    c.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        create(c)
