"""The reference values hold, and a deliberate mistake of each known kind makes them fail."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import filled

from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert, layouts
from maskcl_jax.methods import METHODS, cmae, import_class, mocov2
from maskcl_jax.models import heads, kernels, resnet, transformer, vit
from maskcl_jax.models.batch_norm import BatchNorm
from maskcl_jax.models.vit import sincos_table
from maskcl_jax.ops import losses, masking
from maskcl_jax.training import train_state
from maskcl_jax.verify import cases, verify_file
from maskcl_jax.verify.__main__ import SHIPPED, main

FILES = sorted(SHIPPED.glob("*.npz"))


# The cases of networks that have gradients written by hand, each network once; MoCo's are in test_verify_convnets.
FUSED = ("mae", "ccmim", "cmae", "mocov3", "vit_forward", "resnet_forward")


@pytest.mark.parametrize(
    ("path", "kind"),
    [(path, kind) for path in FILES for kind in ("fused", "plain") if kind == "fused" or path.stem in FUSED],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_array_is_within_its_limit(path, kind):
    checks = verify_file(path, kernels=kind)
    assert checks
    assert [str(check) for check in checks if not check.passed] == []


def failures(name: str) -> list[str]:
    return [check.name for check in verify_file(SHIPPED / f"{name}.npz") if not check.passed]


def tanh_gelu(monkeypatch):
    monkeypatch.setattr(transformer, "gelu", lambda x, *, kernels: nn.gelu(x))


def layer_norm_eps(monkeypatch):
    monkeypatch.setattr(kernels, "LAYER_NORM_EPS", 1e-5)


def biased_variance(monkeypatch):
    def wrong(patches, eps=1e-6):
        return patches.mean(axis=-1, keepdims=True), jnp.sqrt(patches.var(axis=-1, keepdims=True) + eps)

    monkeypatch.setattr(losses, "patch_statistics", wrong)


def eps_outside_the_root(monkeypatch):
    right = losses.patch_statistics
    monkeypatch.setattr(losses, "patch_statistics", lambda p: (right(p)[0], right(p, eps=0.0)[1] + 1e-6))


def swapped_positions(monkeypatch):
    def wrong(width, grid, *, order):
        return sincos_table(width, grid, order="mocov3" if order == "mae" else "mae")

    monkeypatch.setattr(vit, "sincos_table", wrong)


def channel_first_patches(monkeypatch):
    def wrong(images, patch):
        b, h, w, c = images.shape
        x = images.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 5, 2, 4)
        return x.reshape(b, -1, patch * patch * c)

    monkeypatch.setattr(masking, "patchify", wrong)


def cls_column(monkeypatch):
    def wrong(q, k):
        weights = jax.nn.softmax(jnp.einsum("bkhd,bqhd->bhkq", k, q) * q.shape[-1] ** -0.5, axis=-1)
        return weights[:, :, 1:, 0].mean(axis=1)

    monkeypatch.setattr(transformer, "cls_weights", wrong)


def gradient_through_keys(monkeypatch):
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)


def biased_running_variance(monkeypatch):
    right = BatchNorm.__call__

    def wrong(self, x, *, train):
        y = right(self, x, train=train)
        n = x.shape[0]
        var = self.get_variable("batch_stats", "var")
        if train and not self.is_initializing():
            self.put_variable("batch_stats", "var", var * (n - 1) / n)
        return y

    monkeypatch.setattr(heads.BatchNorm, "__call__", wrong)


def keys_before_the_ema(monkeypatch):
    monkeypatch.setattr(train_state, "ema", lambda target, online, momentum: target)


def shares_exchanged(monkeypatch):
    right = train_state.ema
    monkeypatch.setattr(train_state, "ema", lambda target, online, momentum: right(online, target, momentum))


def target_with_the_online_weights(monkeypatch):
    right = cmae.CMAE.forward

    def wrong(self, params, context, *views):
        return right(self, params, context._replace(target_params=self.target_params(params)), *views)

    monkeypatch.setattr(cmae.CMAE, "forward", wrong)


def one_mask_token(monkeypatch):
    right = cmae.CMAE.online_features

    def wrong(self, params, *seen):
        shared = {**params["feature_decoder"], "mask_token": params["decoder"]["mask_token"]}
        return right(self, {**params, "feature_decoder": shared}, *seen)

    monkeypatch.setattr(cmae.CMAE, "online_features", wrong)


def same_padding(monkeypatch):
    right = nn.Conv
    monkeypatch.setattr(resnet.nn, "Conv", lambda *a, **options: right(*a, **{**options, "padding": "SAME"}))


def keys_by_the_online_network(monkeypatch):
    right = mocov2.MoCoV2.forward

    def wrong(self, params, context, views):
        return right(self, params, context._replace(target_params=params), views)

    monkeypatch.setattr(mocov2.MoCoV2, "forward", wrong)


def no_gradients(monkeypatch):
    """The cases without their backward passes, which take most of the time to compile."""

    def forward_alone(loss, has_aux):
        assert has_aux
        return lambda params, *given: (loss(params, *given), params)

    monkeypatch.setattr(jax, "value_and_grad", forward_alone)


@pytest.mark.parametrize(
    ("name", "mistake", "seen_in"),
    [
        ("mae", tanh_gelu, "outputs/pred"),
        ("mae", layer_norm_eps, "outputs/latent"),
        ("mae", biased_variance, "outputs/loss"),
        ("mae", eps_outside_the_root, "grads/decoder_pred.weight"),
        ("mae", swapped_positions, "outputs/latent"),
        ("mae", channel_first_patches, "outputs/latent"),
        ("ccmim", cls_column, "outputs/A"),
        ("ccmim", gradient_through_keys, "grads/projector.0.weight"),
        ("ccmim", biased_running_variance, "outputs/buffers_after/projector.1.running_var"),
        ("cmae", tanh_gelu, "outputs/pixel_pred"),
        ("cmae", swapped_positions, "outputs/online_pooled"),
        ("cmae", biased_variance, "outputs/loss_rc"),
        ("cmae", shares_exchanged, "outputs/ema_stats/target_projector.fc1.weight"),
        ("cmae", target_with_the_online_weights, "outputs/target_pooled"),
        ("cmae", one_mask_token, "grads/feature_decoder.mask_token"),
        ("mocov3", keys_before_the_ema, "outputs/k1"),
        ("mocov3", biased_running_variance, "outputs/state_after/momentum_encoder.head.1.running_var"),
        ("mocov3", swapped_positions, "outputs/cls1"),
        ("resnet_forward", same_padding, "outputs/layer2_spatial_mean"),
        ("mocov2", keys_by_the_online_network, "outputs/k_raw"),
        ("vit_forward", tanh_gelu, "outputs/blocks/0"),
        ("vit_forward", layer_norm_eps, "outputs/token/features"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_mistake_is_seen(name, mistake, seen_in, monkeypatch):
    if seen_in.startswith("outputs/"):
        no_gradients(monkeypatch)
    mistake(monkeypatch)
    assert seen_in in failures(name)


def test_the_solarize_threshold_follows_the_file(tmp_path):
    """Another level than Pillow's default: what a file states is compared, and another value is seen."""
    with np.load(SHIPPED / "augment.npz") as file:
        arrays = {name: file[name] for name in file.files}
    image, stated = arrays["inputs/image"], json.loads(str(arrays["config"]))
    for level, there in ((64, 64), (64, 66)):
        values = np.where(image >= there, 255 - image, image)
        names = {name: name.replace("solarize_128", f"solarize_{level}") for name in arrays}
        changed = {names[name]: values if names[name] != name else array for name, array in arrays.items()}
        changed["config"] = json.dumps(stated | {"solarize": level})
        np.savez(tmp_path / "augment.npz", **changed)
        failed = [check.name for check in verify_file(tmp_path / "augment.npz") if not check.passed]
        expected = [] if level == there else ["outputs/pil/solarize_64", "outputs/u8/solarize_64"]
        assert sorted(failed) == expected


def test_an_array_that_was_not_computed_fails(tmp_path):
    arrays = dict(np.load(SHIPPED / "mae.npz"))
    np.savez(tmp_path / "mae.npz", **arrays, **{"outputs/unheard_of": np.zeros(3)})
    failed = [check for check in verify_file(tmp_path / "mae.npz") if not check.passed]
    assert [check.name for check in failed] == ["outputs/unheard_of  (not computed)"]


def test_the_command_tells_by_its_status(tmp_path, capsys):
    assert main([str(SHIPPED / "mae_posembed.npz")]) == 0
    arrays = dict(np.load(SHIPPED / "mae_posembed.npz"))
    arrays["outputs/mae/d48_g4"] += 1e-3
    np.savez(tmp_path / "wrong.npz", **arrays)
    assert main([str(tmp_path / "wrong.npz")]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["missing", "garbage", "unknown case", "weights of another method"])
def test_a_file_that_cannot_be_used_is_one_line(what, tmp_path):
    path = tmp_path / "file.npz"
    if what == "garbage":
        path.write_bytes(b"not a zip file")
    elif what == "unknown case":
        np.savez(path, config=json.dumps({"method": "nothing"}))
    elif what == "weights of another method":
        arrays = dict(np.load(SHIPPED / "mae.npz"))
        arrays["weights/extra.weight"] = arrays.pop("weights/cls_token")
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"file\.npz|missing cls_token; left over extra.weight"):
        verify_file(path)


OTHER_DIMENSIONS = {
    "batch": 3,
    "img_size": [8, 16],
    "in_chans": 1,
    "patch_size": 2,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "decoder_embed_dim": 8,
    "decoder_depth": 1,
    "decoder_num_heads": 1,
    "mlp_ratio": 2.0,
    "mask_ratio": 0.6,
    "norm_pix_loss": False,
    "masking": "importance",
    "align_weight": 0.3,
    "temperature": 0.2,
    "projector_dim": 6,
    "batch_norm_eps": 1e-3,
    "batch_norm_momentum": 0.2,
}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", ["mae", "ccmim"])
def test_dimensions_come_from_the_file(name):
    c = {"method": name, **OTHER_DIMENSIONS}
    switches = {"align_weight": 0.3, "temperature": 0.2, "projector_out": 6} if name == "ccmim" else {}
    method = import_class(METHODS[name])(cases.method_config(name, c, **switches))
    params, state = filled(method)
    rows = {"mae": layouts.mae, "ccmim": layouts.ccmim}[name](1, 1)
    weights = convert.to_torch({"params": params, **state}, rows, cases.shape_of(method))
    noise = np.random.default_rng(0).random((3, 32), dtype=np.float32)
    images = np.random.default_rng(1).normal(size=(3, 1, 8, 16)).astype(np.float32)
    computed = cases.CASES[name].compute(c, weights, {"images": images, "noise": noise})
    assert computed["outputs/mask"].sum(axis=1).tolist() == [32 - int(32 * (1 - 0.6))] * 3
    assert computed["outputs/pred"].shape == (3, 32, 4)
    assert {f"grads/{key}" for key in weights if "pos_embed" not in key and key.split(".")[-1] not in BUFFERS} == {
        key for key in computed if key.startswith("grads/")
    }
    if name == "mae":
        np.testing.assert_allclose(computed["outputs/loss"], computed["outputs/loss_without_norm_pix"])
    else:
        assert int(computed["outputs/buffers_after/projector.4.num_batches_tracked"]) == 2
        aligned = computed["outputs/loss_rec"] + 0.3 * computed["outputs/loss_align"]
        np.testing.assert_allclose(computed["outputs/loss"], aligned, rtol=1e-6)
