"""The features of an encoder: each kind, other image sizes, attention, ResNets."""

import jax
import numpy as np
import pytest
from helpers.evaluations import EIGHT_PIXELS
from helpers.untrained import made, run_of

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import encoder as encoder_lib
from maskcl_jax.interchange import check
from maskcl_jax.interchange.product import product_of
from maskcl_jax.models.vit import ViT


@pytest.fixture(scope="module")
def small():
    """A run of 8x8 grey images."""
    return made("mae", **EIGHT_PIXELS)


def test_features_of_each_kind(small):
    """The kinds are built of the blocks' outputs as the method itself reads them."""
    chosen = encoder_lib.open_encoder(small)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)

    @jax.jit
    def both(params):
        ours = {kind: chosen.features({"params": params["encoder"]}, images, kind) for kind in kinds}
        return ours, {kind: small.method.features(params, {}, images, kind=kind) for kind in ("cls", "mean")}

    kinds = ("cls", "mean", "last1", "mean+cls", "pixels")
    ours, theirs = both(small.state.params)
    for kind, expected in (("cls", "cls"), ("mean", "mean"), ("last1", "cls")):
        np.testing.assert_allclose(ours[kind], theirs[expected], atol=1e-5)
    np.testing.assert_array_equal(ours["mean+cls"], np.concatenate([ours["mean"], ours["cls"]], axis=1))
    assert ours["pixels"].shape == (3, 64)


@pytest.mark.parametrize(("size", "grid"), [((16, 12), (4, 3)), ((4, 8), (1, 2)), ((28, 8), (7, 2))])
def test_another_image_size_resizes_the_positions_as_torch_does(small, size, grid):
    """The run's table is 2x2, of distinct sines; MAE fine-tunes with torch's bicubic interpolation of it."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    resized = encoder_lib.open_encoder(small, image_size=size)
    assert isinstance(resized.module, ViT) and resized.module.grid == grid
    table = encoder_lib.position_table(small.method.encoder, small.state.params["encoder"])
    old = torch.tensor(table[:, 1:]).reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    new = torch.nn.functional.interpolate(old, size=grid, mode="bicubic", align_corners=False)
    expected = np.concatenate([table[0, :1], new[0].flatten(1).T.numpy()])
    np.testing.assert_allclose(resized.variables["params"]["pos_embed"][0], expected, atol=1e-6)
    features = jax.eval_shape(lambda v, x: resized.features(v, x, "mean"), resized.variables, np.zeros((2, *size, 1)))
    assert features.shape == (2, small.config.model.width)


def test_what_the_cls_token_attends_to_is_timms():
    """timm's network with the run's weights; its attention computed from the queries and keys that it makes."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[torch]'")
    run = made("mae", **{"model.depth": 3, "model.heads": 4, "data.image_size": (16, 24)})
    chosen = encoder_lib.open_encoder(run)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
    ours = jax.jit(chosen.cls_attention)(chosen.variables, images)
    product = product_of(run, format="timm", network="online", full=False)
    model, made_by_block = check.model_of_snippet(product, product.state), []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda module, given, output: made_by_block.append(output))
    with torch.no_grad():
        model(torch.tensor(check.normalized(product, images)).permute(0, 3, 1, 2))
    for layer, qkv in enumerate(made_by_block):
        queries, keys, _ = qkv.reshape(2, 7, 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = (queries[:, :, :1] @ keys.transpose(-1, -2) / 8**0.5).softmax(-1)
        theirs = weights[:, :, 0, 1:].mean(1).reshape(2, 2, 3).numpy()
        assert theirs.std() / theirs.mean() > 0.01
        np.testing.assert_allclose(ours[layer], theirs, atol=1e-5)


def test_a_resnet_has_pooled_features_and_a_target():
    run = run_of(made("moco_v2", **{"model.stages": (1, 1)}).config)
    online, target = (encoder_lib.open_encoder(run, network=name) for name in ("online", "target"))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)

    @jax.jit
    def both(state, variables):
        theirs = run.method.features(state.params, state.model_state, images, kind="mean")
        return online.features(variables, images, "pool"), theirs

    np.testing.assert_allclose(*both(run.state, online.variables), rtol=1e-4, atol=1e-5)
    difference = jax.tree.map(lambda a, b: abs(a - b).max(), online.variables["params"], target.variables["params"])
    assert max(jax.tree.leaves(difference)) > 0
    with pytest.raises(UserError, match="cls"):
        encoder_lib.check_feature("cls", online.module)
