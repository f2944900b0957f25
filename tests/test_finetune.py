"""Fine-tuning: classifiers and layer decay against the authors' values, augmentation against timm, and a journey."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.models import noise
from helpers.untrained import made, run_of
from helpers.views import host_batch, view_of
from PIL import Image

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import batches, finetune, mixing, recipes, session, settings
from maskcl_jax.interchange import convert, layouts
from maskcl_jax.models.classifier import ViTClassifier, drop_path
from maskcl_jax.models.vit import ViT
from maskcl_jax.training import optimizer
from maskcl_jax.verify import verify_file
from maskcl_jax.verify.__main__ import SHIPPED
from maskcl_jax.views import randaugment
from maskcl_jax.views.randaugment import RandAugment

TIMM = RandAugment(fill=(124, 116, 104))


def failures(name):
    return [check.name for check in verify_file(SHIPPED / f"{name}.npz") if not check.passed]


def test_optaxs_own_lars_is_another_one(monkeypatch):
    def theirs(schedule, *, momentum, weight_decay, mask):
        fields = {"weight_decay_mask": mask, "trust_ratio_mask": mask, "momentum": momentum}
        return optax.lars(schedule, weight_decay=weight_decay, trust_coefficient=0.001, **fields)

    monkeypatch.setattr(optimizer, "lars_mae", theirs)
    assert any(name.startswith("outputs/lr_varies/step2") for name in failures("mae_lars"))


@pytest.mark.parametrize(
    ("function", "mistake", "culprit"),
    [
        ("layer_number", lambda name: 0 if name.startswith("blocks") else None, "blocks.1"),
        ("decayed_without_tokens", optimizer.decayed_matrices, "cls_token"),
    ],
)
def test_a_wrong_layer_or_a_decayed_token_shows(monkeypatch, function, mistake, culprit):
    monkeypatch.setattr(optimizer, function, mistake)
    assert any(culprit in name for name in failures("mae_layer_decay"))


def test_cmae_decays_the_scale_of_fc_norm_alone_among_norms():
    leaf, norm = np.ones(2), {"scale": np.ones(2), "bias": np.ones(2)}
    encoder = {"cls_token": leaf, "pos_embed": leaf, "blocks_0": {"norm1": norm, "mlp": {"fc1": {"kernel": leaf}}}}
    params = {"encoder": encoder, "fc_norm": norm, "head": {"kernel": leaf, "bias": leaf}}
    decays = optimizer.decayed_but_named(params)
    assert decays["fc_norm"] == {"scale": True, "bias": False}
    assert decays["head"] == {"kernel": True, "bias": False}
    inside = {"norm1": {"scale": False, "bias": False}, "mlp": {"fc1": {"kernel": True}}}
    assert decays["encoder"] == {"cls_token": False, "pos_embed": False, "blocks_0": inside}


def test_both_classifiers_are_timms():
    with np.load(SHIPPED / "vit_forward.npz") as file:
        arrays = {key: file[key] for key in file.files}
    c = json.loads(str(arrays["config"]))
    weights = {key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")}
    fields = {"width": c["embed_dim"], "depth": c["depth"], "heads": c["num_heads"], "mlp_ratio": c["mlp_ratio"]}
    size = (c["img_size"],) * 2 if isinstance(c["img_size"], int) else tuple(c["img_size"])
    encoder = ViT(image_size=size, channels=c["in_chans"], patch_size=c["patch_size"], positions="learned", **fields)
    shape = convert.Shape(c["patch_size"], c["in_chans"], encoder.grid, learned=True)
    rest = {key: value for key, value in weights.items() if not key.startswith(("fc_norm.", "head."))}
    params = convert.from_torch(rest, layouts.timm_vit(c["depth"]), shape)["params"]
    params["head"] = {"kernel": weights["head.weight"].T, "bias": weights["head.bias"]}
    params["fc_norm"] = {"scale": weights["fc_norm.weight"], "bias": weights["fc_norm.bias"]}
    images = np.moveaxis(arrays["inputs/images"], 1, -1)
    for pool, name in (("mean", "avg"), ("cls", "token")):
        model = ViTClassifier(encoder=encoder, num_classes=10, pool=pool)
        with jax.default_matmul_precision("highest"):
            logits = model.apply({"params": params}, images, train=False)
        expected = arrays[f"outputs/{name}/logits"]
        np.testing.assert_allclose(logits, expected, atol=5e-5 * np.sqrt(np.mean(expected**2)))


def test_drop_path_drops_the_deeper_the_more_and_keeps_the_mean():
    factors = np.asarray(drop_path(jax.random.key(0), 0.4, depth=5, batch=4000))
    dropped = (factors == 0).mean(axis=(1, 2))
    np.testing.assert_allclose(dropped, [0.0, 0.1, 0.2, 0.3, 0.4], atol=0.02)
    np.testing.assert_allclose(factors.mean(axis=(1, 2)), 1.0, atol=0.03)


def test_a_dropped_branch_adds_nothing():
    vit = ViT(image_size=(8, 8), channels=1, patch_size=4, width=8, depth=2, heads=2)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    variables = noise(jax.eval_shape(vit.init, jax.random.key(0), images), scale=1.0)
    branches = np.ones((2, 2, 3), np.float32)
    branches[1, :, 2] = 0.0

    @jax.jit
    def layers(branches):
        given = (None, branches)
        return [vit.apply(variables, images, b, method=lambda m, x, b: m.layers(m.embed(x), b)) for b in given]

    plain, dropped = layers(branches)
    # The program has both, and rounds each its own way: a unit in the last place of the largest number, 66, is 8e-6.
    np.testing.assert_allclose(dropped[1][:2], plain[1][:2], rtol=0, atol=4 * np.spacing(abs(plain[1]).max()))
    np.testing.assert_array_equal(dropped[1][2], dropped[0][2])


IMAGES = np.random.default_rng(0).normal(size=(40, 20, 24, 2)).astype(np.float32)
TARGETS = np.eye(5, dtype=np.float32)[np.arange(40) % 5]


def test_erasing_replaces_one_rectangle_by_noise():
    erase = jax.jit(lambda key, probability: mixing.erase(key, IMAGES, probability))
    erased = np.asarray(erase(jax.random.key(0), 1.0))
    for image, before in zip(erased, IMAGES, strict=True):
        changed = (image != before).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert changed.sum() == len(rows) * len(columns)
        assert 0.01 < changed.mean() < 0.40
        assert 0.2 < len(rows) / len(columns) < 5.0
    half = np.asarray(erase(jax.random.key(1), 0.25) != IMAGES).any(axis=(1, 2, 3))
    assert 2 <= half.sum() <= 20


@functools.partial(jax.jit, static_argnames=("mixup", "cutmix"))
def mixed(key, *, mixup, cutmix):
    return mixing.mix(key, IMAGES, TARGETS, mixup=mixup, cutmix=cutmix)


def test_mixup_blends_images_as_it_blends_targets():
    images, targets = mixed(jax.random.key(0), mixup=0.8, cutmix=0.0)
    share = float(targets[0, 0])  # of image 0 and its label 0; its partner, image 39, has label 4
    assert 0.0 < share < 1.0
    np.testing.assert_allclose(images, share * IMAGES + (1 - share) * IMAGES[::-1], atol=1e-5)
    np.testing.assert_allclose(targets, share * TARGETS + (1 - share) * TARGETS[::-1], atol=1e-5)


def test_with_both_half_the_batches_are_cut_and_labels_have_the_share_of_their_pixels():
    cut = 0
    for seed in range(40):
        images, targets = map(np.asarray, mixed(jax.random.key(seed), mixup=0.8, cutmix=1.0))
        own, theirs = (images == IMAGES).all(axis=-1), (images == IMAGES[::-1]).all(axis=-1)
        if (own | theirs).all():
            np.testing.assert_allclose(targets[0, 0], own[0].mean(), atol=1e-6)
            cut += 1
        else:
            share = targets[0, 0]
            np.testing.assert_allclose(images[0], share * IMAGES[0] + (1 - share) * IMAGES[39], atol=1e-5)
    assert 8 < cut < 32


def test_smoothed_targets():
    np.testing.assert_allclose(mixing.smooth_targets(jnp.array([1]), 4, 0.1), [[0.025, 0.925, 0.025, 0.025]], atol=1e-6)


def picture() -> np.ndarray:
    y, x = np.mgrid[:32, :40]
    return np.stack([6 * x, 7 * y, (x * y) % 256], axis=-1).astype(np.uint8)


# ours -> timm's
OPERATIONS = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
@pytest.mark.parametrize("level", [0.35, 0.9])
def test_each_operation_is_timms(name, level, monkeypatch):
    timm = pytest.importorskip("timm.data.auto_augment")
    image, hparams = Image.fromarray(picture()), {"img_mean": TIMM.fill, "interpolation": Image.Resampling.BICUBIC}
    for sign, chance in ((1, 0.9), (-1, 0.1)):
        # timm negates where random.random() > 0.5.
        monkeypatch.setattr(timm.random, "random", lambda chance=chance: 1 - chance)
        theirs = timm.AugmentOp(OPERATIONS[name], prob=1.0, magnitude=10 * level, hparams=hparams)(image)
        ours = randaugment.OPERATIONS[name](image, level, sign, TIMM.fill)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_timm_draws_from_the_same_operations():
    timm = pytest.importorskip("timm.data.auto_augment")
    assert list(OPERATIONS.values()) == list(timm._RAND_INCREASING_TRANSFORMS)


def test_operations_depend_on_the_image_and_epoch_alone():
    view, pictures = view_of((32, 40), dataclasses.replace(TIMM, probability=1.0)), np.stack([picture()] * 3)

    def augmented(images, epoch=0):
        batch = host_batch([view], [4, 9, 4], epoch=epoch)
        batch.images["image"] = images
        batch.add_ingredients()
        return batch.images["image"]

    first, second = augmented(pictures), augmented(pictures, epoch=1)
    np.testing.assert_array_equal(first[0], first[2])
    assert (first[0] != first[1]).any() and (first[0] != second[0]).any()
    assert augmented(pictures[..., :1]).shape == (3, 32, 40, 1)
    with pytest.raises(UserError, match="channels"):
        augmented(np.zeros((3, 32, 40, 2), np.uint8))


def plans():
    draws = np.random.default_rng(0)
    return [TIMM.plan(draws) for _ in range(2000)]


def test_as_many_operations_as_strong_as_timm_draws_them():
    found = [operation for plan in plans() for operation in plan]
    assert 0.47 < len(found) / 4000 < 0.53
    levels = np.array([level for _, level, _ in found])
    assert abs(levels.mean() - 0.9) < 0.01 and 0.04 < levels.std() < 0.06 and levels.max() <= 1.0
    assert {name for name, _, _ in found} == set(randaugment.OPERATIONS)


@pytest.fixture(scope="module")
def small():
    """A run of 8x8 grey images."""
    fields = {"data.image_size": (8, 8), "data.channels": 1, "model.patch_size": 4, "data.num_examples": 61}
    return made("mae", **fields)


SHORT = ("batch_size=16", "eval_batch_size=16", "total_steps=3", "checkpoint_every_epochs=0")


def opened(run, protocol, folder, *overrides):
    (chosen,) = settings.create(protocol, run.config, overrides=(*SHORT, *overrides))
    return session.open_session(run._replace(workdir=str(folder)), chosen)


def test_maes_whole_recipe_runs_on_few_labels_and_another_size(small, tmp_path):
    strong = ("labels=3", "data.image_size=12x8", "ema=0.9", "randaugment.probability=1.0")
    s = opened(small, "finetune:mae_b", tmp_path, *strong)
    (entry,) = finetune.run_finetune(s)["entries"]
    assert (entry["n_train"], entry["n_test"]) == (24, 15)
    tuning = finetune.Tuning(s, batches.Budget(16, 16, 3, 1))
    state = jax.eval_shape(tuning.new_state, jax.random.key(0), s.encoder.variables)
    assert state["params"]["encoder"]["pos_embed"].shape == (1, 1 + 6, 32)
    assert "norm" not in state["params"]["encoder"]


def test_it_begins_with_the_runs_weights_or_with_new_ones(small, tmp_path, monkeypatch):
    def encoder(init):
        s = opened(small, "finetune", tmp_path, f"init={init}")
        tuning = finetune.Tuning(s, batches.Budget(16, 16, 3, 1))
        images = np.zeros((2, 8, 8, 1), np.float32)
        new = noise(jax.eval_shape(lambda: tuning.model.init(jax.random.key(0), images, train=True)), scale=1.0)
        monkeypatch.setattr(ViTClassifier, "init", lambda *arguments, **options: new)
        monkeypatch.setattr(tuning, "tx", optax.identity())
        return tuning.new_state(jax.random.key(0), s.encoder.variables)["params"]["encoder"], s, new

    (pretrained, s, _), (scratch, _, new) = encoder("pretrained"), encoder("scratch")
    given = s.encoder.variables["params"]
    for name in ("cls_token", "patch_embed", "blocks_0"):
        jax.tree.map(np.testing.assert_array_equal, pretrained[name], given[name])
        jax.tree.map(np.testing.assert_array_equal, scratch[name], new["params"]["encoder"][name])
    np.testing.assert_array_equal(pretrained["pos_embed"], scratch["pos_embed"])


def test_a_resnet_learns_its_statistics_too(tmp_path):
    s = opened(run_of(made("moco_v2").config), "finetune", tmp_path)
    assert s.settings.recipe == "resnet"
    tuning = finetune.Tuning(s, batches.Budget(16, 16, 3, 1))
    state = jax.eval_shape(tuning.new_state, jax.random.key(0), s.encoder.variables)
    batch = {"image": np.zeros((16, 32, 32, 3), np.uint8), "label": np.zeros(16, np.int32)}
    after, _ = jax.eval_shape(tuning.step, state, s.encoder.variables, batch, 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "encoder" in after["stats"]


@pytest.mark.parametrize(
    ("recipe", "lr", "decay", "drop", "epochs"),
    [("mae_b", 2e-3, 0.65, 0.1, 100), ("mae_l", 4e-3, 0.75, 0.2, 50), ("cmae_b", 1e-3, 0.65, 0.1, 100)],
)
def test_the_published_recipes(recipe, lr, decay, drop, epochs):
    r = recipes.FINETUNE[recipe]
    assert r["optimizer"]["base_lr"] * r["batch_size"] / 256 == pytest.approx(lr)
    assert (r["optimizer"]["layer_decay"], r["drop_path"], r["epochs"]) == (decay, drop, epochs)
    assert (r["mixup"], r["cutmix"], r["label_smoothing"], r["erase_p"]) == (0.8, 1.0, 0.1, 0.25)


def test_moco_v2s_linear_rate_falls_at_60_and_80():
    (s,) = settings.create("linear:mocov2", made("moco_v2").config)
    schedule = optimizer.learning_rate(s, total_steps=1000, steps_per_epoch=10)
    rates = [float(schedule(step)) for step in (0, 599, 600, 799, 800, 999)]
    np.testing.assert_allclose(rates, [30, 30, 3, 3, 0.3, 0.3], rtol=1e-5)


def test_every_recipe_makes_a_view_and_a_chain(small):
    for protocol in ("linear", "finetune"):
        for recipe in recipes.PROTOCOLS[protocol]:
            (s,) = settings.create(f"{protocol}:{recipe}", small.config)
            assert batches.view_of(s).crop.size == (8, 8)
            optimizer.create(s, lambda step: 0.1)
            assert config_lib.flat(s)
