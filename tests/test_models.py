"""Networks: init statistics, shapes of every kind, BatchNorm by groups, and timm as the reference."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import assert_equal_gradients, noise, vit

from maskcl_jax.config import encoder_size
from maskcl_jax.interchange import convert, layouts
from maskcl_jax.models.vit import Decoder, ViT, sincos_table
from maskcl_jax.ops import masking
from maskcl_jax.performance import flops


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("size", "patch"), [((16, 24), 8), ((24, 12), 4)])
def test_any_shape_any_channels(size, patch, channels):
    model = vit(image_size=size, patch_size=patch, channels=channels)
    images = jnp.zeros((2, *size, channels))
    tokens, _ = jax.eval_shape(model.init_with_output, jax.random.key(1), images)
    assert tokens.shape == (2, 1 + size[0] * size[1] // patch**2, 64)


def test_init_follows_mae():
    init = jax.jit(vit(width=256, heads=4, depth=1).init)
    params = init(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))["params"]
    qkv = params["blocks_0"]["attn"]["qkv"]["kernel"]
    # Xavier on the fused matrix: sqrt(6 / (D + 3D)), not sqrt(6 / 2D) as for three separate ones.
    assert 0.99 < float(jnp.abs(qkv).max()) / np.sqrt(6 / (4 * 256)) <= 1.0
    patch = params["patch_embed"]
    assert 0.98 < float(jnp.abs(patch["kernel"]).max()) / np.sqrt(6 / (8 * 8 * 3 + 256)) <= 1.0
    assert 0.95 < float(jnp.abs(patch["bias"]).max()) / np.sqrt(1 / (8 * 8 * 3)) <= 1.0
    assert 0.7 < float(params["cls_token"].std()) / 0.02 < 1.3
    assert float(jnp.abs(params["blocks_0"]["mlp"]["fc1"]["bias"]).max()) == 0.0


def test_published_sizes_have_published_parameter_counts():
    model = ViT(image_size=(224, 224), channels=3, **encoder_size("B/16"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    # 85,798,656 with the fixed position table of 197 x 768, which is no parameter here.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 85_798_656 - 197 * 768


def test_the_two_position_tables_have_their_halves_swapped():
    mae, moco = (sincos_table(16, (3, 5), order=order) for order in ("mae", "mocov3"))
    np.testing.assert_array_equal(mae, np.concatenate([moco[:, 8:], moco[:, :8]], axis=1))
    # MAE: the first half knows the column; patches 0 and 5 are one above the other.
    np.testing.assert_array_equal(mae[0, :8], mae[5, :8])
    assert np.abs(mae[0, 8:] - mae[5, 8:]).max() > 0.1


def test_the_cls_rows_of_some_layers_are_those_of_all():
    model = vit()
    images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    variables = noise(jax.eval_shape(model.init, jax.random.key(1), images), scale=0.1)

    @jax.jit
    def attention(variables):
        def of_layers(model, images):
            tokens = model.embed(images)
            return [model.cls_attention(tokens, layers) for layers in ((), (0,), (-1,))]

        return model.apply(variables, images, method=of_layers)

    both, first, second = attention(variables)
    assert both.shape == (2, 2, 6)
    np.testing.assert_allclose(first[0], both[0], rtol=1e-5)
    np.testing.assert_allclose(second[0], both[1], rtol=1e-5)
    # The rest of a row is the attention to the cls token itself.
    assert bool(jnp.all((both.sum(axis=-1) > 0) & (both.sum(axis=-1) < 1)))


def test_some_patches_are_embedded_as_among_all():
    for positions in ("mae", "learned"):
        model, images = vit(positions=positions), jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
        variables = noise(jax.eval_shape(model.init, jax.random.key(1), images), scale=0.1)
        ids = jnp.array([[5, 0, 2], [1, 4, 3]])
        every, some = (model.apply(variables, images, *given, method=ViT.embed) for given in ((), (ids,)))
        np.testing.assert_allclose(some, masking.take(every, ids), atol=1e-6)


TOKENS = jax.random.normal(jax.random.key(0), (2, 6, 64))


def last(model, variables, **given):
    """Tokens behind the blocks."""
    return model.apply(variables, TOKENS, final_norm=False, **given, method=ViT.encode)


@functools.cache
def of_all_rows():
    """(parameters of three blocks, all rows behind them, the function that pulls a gradient of the rows back)."""
    model = vit(depth=3)
    variables = noise(jax.eval_shape(model.init, jax.random.key(1), jnp.zeros((2, 16, 24, 3))), scale=0.1)
    out, pull = jax.vjp(jax.jit(lambda v: last(model, v)), variables)
    return variables, out, pull


@pytest.mark.parametrize("switches", [{}, {"remat": "cheap"}, {"remat": "blocks", "scan": True}])
@pytest.mark.parametrize("rows", [slice(1), slice(3, None)])
def test_the_rows_that_are_wanted_equal_those_of_all(switches, rows):
    variables, every, pull = of_all_rows()
    alone = vit(depth=3, **switches)

    @jax.jit
    def run(variables):
        found, back = jax.vjp(lambda v: last(alone, v, rows=rows), variables)
        return found, back(jnp.cos(found))[0]

    found, gradient = run(variables)
    np.testing.assert_allclose(found, every[:, rows], atol=1e-5)
    (expected,) = pull(jnp.zeros_like(every).at[:, rows].set(jnp.cos(every[:, rows])))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient, expected)


def test_masked_patches_only_are_the_last_of_all():
    decoder = Decoder(grid=(2, 3), width=32, depth=2, heads=2, out=12)
    latent = jax.random.normal(jax.random.key(0), (2, 3, 64))
    visible, masked = jnp.array([[5, 0], [1, 4]]), jnp.array([[1, 2, 3, 4], [0, 2, 3, 5]])
    variables = noise(jax.eval_shape(decoder.init, jax.random.key(1), latent, visible, masked), scale=0.1)

    @functools.partial(jax.jit, static_argnames="only_masked")
    def decode(variables, **only):
        return decoder.apply(variables, latent, visible, masked, **only)

    every, some = decode(variables), decode(variables, only_masked=True)
    assert (every.shape, some.shape) == ((2, 6, 12), (2, 4, 12))
    np.testing.assert_allclose(some, every[:, 2:], atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = vit(dtype=jnp.bfloat16)
    images = jnp.ones((1, 16, 24, 3))
    tokens, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert tokens.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("patch", "channels"), [(8, 3), (16, 1), (8, 4)])
def test_a_timm_vit_of_any_shape_gives_our_features(patch, channels):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[torch]'")
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=(32, 48),
        patch_size=patch,
        in_chans=channels,
        num_classes=0,
        embed_dim=48,
        depth=2,
        num_heads=3,
    ).eval()
    model = vit(image_size=(32, 48), patch_size=patch, channels=channels, width=48, heads=3, positions="learned")
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    shape = convert.Shape(patch, channels, model.grid, learned=True)
    params = convert.from_torch(state, layouts.timm_vit(2), shape)["params"]["encoder"]
    images = np.random.default_rng(0).normal(size=(2, 32, 48, channels)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.forward_features(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(model.apply({"params": params}, images), expected, atol=1e-5)


def test_blocks_in_a_loop_or_run_twice_are_the_same_blocks():
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 16, 24, 3)), jnp.float32)
    results = {}
    for remat, scan in itertools.product(("none", "cheap", "blocks"), (False, True)):
        model = vit(width=32, heads=2, remat=remat, scan=scan)
        params = noise(jax.eval_shape(model.init, jax.random.key(0), images), center=1.0, scale=0.1)

        def loss(params, model=model):
            return jnp.mean(model.apply(params, images) ** 3)

        program = str(jax.make_jaxpr(loss)(params))
        assert ("scan[" in program, "remat" in program) == (scan, remat != "none")
        results[remat, scan] = params, jax.jit(jax.value_and_grad(loss))(params)
    for one in list(results.values())[1:]:
        jax.tree.map(assert_equal_gradients, one, results["none", False])


def test_what_is_cheap_to_make_again_holds_no_product_with_weights():
    images = jnp.zeros((2, 16, 24, 3))

    def work(remat):
        model = vit(width=256, depth=3, remat=remat)  # wide: most of the work is that of the weights
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        return flops.matrix_flops(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(model.apply(p, images) ** 2)))(params))

    once = work("none")
    assert once < work("cheap") < 1.02 * once
    assert work("blocks") > 1.2 * once
