"""Networks: init statistics, shapes of every kind, BatchNorm by groups, and timm as the reference."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import vit
from helpers.tiny import tiny

from maskcl_jax import config as config_lib
from maskcl_jax.config import encoder_size
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import catalog, convert, layouts
from maskcl_jax.methods import create
from maskcl_jax.models.batch_norm import BatchNorm
from maskcl_jax.models.kernels import convolve, convolve_pointwise
from maskcl_jax.models.resnet import RESNETS, ResNet, ResNetSize
from maskcl_jax.models.vit import Decoder, ViT, sincos_table
from maskcl_jax.ops import masking
from maskcl_jax.performance import flops
from maskcl_jax.training import run_folder


def filled(shapes, centre=1.0):
    """Noise of such shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(centre + 0.1 * rng.standard_normal(s.shape), s.dtype), shapes)


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


def resnet(variant):
    fields = encoder_size(variant)
    return ResNet(**RESNETS[fields.pop("depth")]._asdict(), **fields)


@pytest.mark.parametrize(
    ("variant", "count"),
    # torchvision's published counts without the classifier (width * classes + classes)
    [
        ("R18", 11_689_512 - 513_000),
        ("R34", 21_797_672 - 513_000),
        ("R50", 25_557_032 - 2_049_000),
        ("R101", 42_500_160),
    ],
)
def test_resnets_have_published_parameter_counts(variant, count):
    model = resnet(variant)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((2, 64, 64, 3)), train=True), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.parametrize(("variant", "size", "shape"), [("R50x2", 64, (2, 2, 4096)), ("R18/small", 32, (4, 4, 512))])
def test_stems_and_widths(variant, size, shape):
    model = resnet(variant)
    images = jnp.zeros((2, size, size, 1))
    out, _ = jax.eval_shape(lambda key: model.init_with_output(key, images, train=True), jax.random.key(0))
    assert out.shape == (2, *shape)
    assert (model.out_width, size // model.stride) == (shape[-1], shape[0])


@pytest.mark.parametrize(
    ("size", "stem", "shape"),
    [
        (ResNetSize((1, 2), True), "small", (16, 16, 64)),
        (ResNetSize((2, 1, 3), False), "imagenet", (2, 2, 32)),
        (ResNetSize((1, 1, 1, 1, 1), False), "small", (2, 2, 128)),
    ],
)
def test_any_stages(size, stem, shape):
    model = ResNet(**size._asdict(), width=8, stem=stem)
    images = jnp.zeros((2, 32, 32, 3))
    out, variables = jax.eval_shape(lambda key: model.init_with_output(key, images, train=True), jax.random.key(0))
    assert out.shape == (2, *shape)
    assert (model.out_width, 32 // model.stride) == (shape[-1], shape[0])
    # The layout names every array of it, and no other; and its keys say which stages they are of.
    rows = layouts.resnet(size)
    assert {row.ours.replace("/encoder/", "/", 1) for row in rows} == convert.paths_of(variables).keys()
    assert catalog.resnet_size([row.theirs for row in rows], "", layouts.TORCHVISION) == size


def test_a_config_names_any_stages():
    method = create(tiny("moco_v2", **{"model.depth": 14, "model.stages": (1, 2)}))
    assert method.encoder.size == ((1, 2), True)
    with pytest.raises(UserError, match=r"model\.stages=\(1, 0\) is out of range"):
        create(tiny("moco_v2", **{"model.stages": (1, 0)}))
    # A run of an earlier version has no such field, and goes on.
    stored = config_lib.flat(tiny("moco_v2"))
    del stored["model.stages"]
    assert run_folder.differences(tiny("moco_v2"), stored) == []
    assert create(config_lib.unflat(stored)).encoder.size == create(tiny("moco_v2")).encoder.size


def test_names_of_resnets():
    assert ResNetSize((3, 4, 6, 3), True).name == "ResNet-50"
    assert ResNetSize((4, 3, 6, 3), True).name == "ResNet-50 of 4-3-6-3 blocks"  # as deep, and another network


def test_resnet_kernels_begin_as_he_et_al_say():
    model = ResNet(stages=(1,), bottleneck=False, stem="small")
    params = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
    kernel = params["params"]["layer1_0"]["conv1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)


def test_the_two_position_tables_have_their_halves_swapped():
    mae, moco = (sincos_table(16, (3, 5), order=order) for order in ("mae", "mocov3"))
    np.testing.assert_array_equal(mae, np.concatenate([moco[:, 8:], moco[:, :8]], axis=1))
    # MAE: the first half knows the column; patches 0 and 5 are one above the other.
    np.testing.assert_array_equal(mae[0, :8], mae[5, :8])
    assert np.abs(mae[0, 8:] - mae[5, 8:]).max() > 0.1


def test_the_cls_rows_of_some_layers_are_those_of_all():
    model = vit()
    images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    variables = filled(jax.eval_shape(model.init, jax.random.key(1), images), centre=0.0)

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
        variables = filled(jax.eval_shape(model.init, jax.random.key(1), images), centre=0.0)
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
    variables = filled(jax.eval_shape(model.init, jax.random.key(1), jnp.zeros((2, 16, 24, 3))), centre=0.0)
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
    variables = filled(jax.eval_shape(decoder.init, jax.random.key(1), latent, visible, masked), centre=0.0)

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


@pytest.mark.parametrize("group", [0, 4])
def test_batch_norm_normalizes_within_groups(group):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(8, 5))
    norm = BatchNorm(group_size=group)
    variables = norm.init(jax.random.key(0), jnp.zeros((2, 5)), train=True)
    y, state = norm.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    parts = x.reshape(8 // (group or 8), -1, 5)
    expected = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(8, 5), atol=1e-5)
    running = state["batch_stats"]
    assert int(running["count"]) == 1
    np.testing.assert_allclose(running["mean"], 0.1 * parts.mean(1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * parts.var(1, ddof=1).mean(0), rtol=1e-5)
    still = norm.apply({**variables, **state}, jnp.asarray(x), train=False)
    np.testing.assert_allclose(still, (x - running["mean"]) / np.sqrt(running["var"] + 1e-5), atol=1e-5)


def test_batch_norm_of_feature_maps_is_torchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    x = np.random.default_rng(1).normal(size=(4, 3, 5, 6)).astype(np.float32)
    theirs = torch.nn.BatchNorm2d(6).train()
    expected = theirs(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)
    y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], theirs.running_mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["var"], theirs.running_var.numpy(), rtol=1e-5)


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
        params = filled(jax.eval_shape(model.init, jax.random.key(0), images))

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


def test_a_resnet_that_keeps_less_is_the_same_resnet():
    images = jnp.asarray(np.random.default_rng(1).standard_normal((4, 8, 8, 3)), jnp.float32)
    results = []
    for remat in ("none", "cheap", "blocks"):
        model = ResNet(stages=(1, 1), bottleneck=False, width=8, stem="small", remat=remat)
        variables = filled(jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), images))

        def loss(params, model=model, variables=variables):
            out, state = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.mean(out**2), state

        assert ("remat" in str(jax.make_jaxpr(loss)(variables["params"]))) == (remat != "none")
        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    for one in results[1:]:
        jax.tree.map(assert_equal_but_for_rounding, one, results[0])


def assert_equal_gradients(a, b):
    """The noise of float32 sums in another order, as the test of 1 and 8 devices measures it."""
    np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 + 1e-4 * np.sqrt(np.mean(np.float64(b) ** 2)))


def assert_equal_but_for_rounding(a, b):
    """Float32 noise grows with an array's scale: values of 300 are rounded to 3e-5."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * (1 + np.sqrt(np.mean(np.float64(b) ** 2))))


@pytest.mark.parametrize(("stride", "side"), [(1, 6), (2, 6), (2, 7)])
def test_the_gradients_of_a_1x1_convolution_are_xlas(stride, side):
    out = -(-side // stride)
    shapes = (2, side, side, 3), (1, 1, 3, 5), (2, out, out, 5)
    x, kernel, target = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))

    def loss(convolution, x, kernel):
        return jnp.sum((convolution((stride, stride), x, kernel) - target) ** 2)

    gradient = jax.value_and_grad(loss, argnums=(1, 2))
    ours, xlas = (gradient(f, x, kernel) for f in (convolve_pointwise, convolve))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, xlas)
    of_kernel = jax.jit(jax.grad(functools.partial(loss, convolve_pointwise), argnums=1))
    assert "dot_general" in of_kernel.lower(x, kernel).as_text()


def test_a_resnet_has_the_kernels_that_are_asked_for():
    """Fused and plain are the same function, and only fused multiplies matrices for the gradient."""
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    found = {}
    for kernels in ("plain", "fused"):
        model = ResNet(stages=(1, 1), bottleneck=True, width=4, stem="small", kernels=kernels)
        variables = filled(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(1), images))

        def loss(params, model=model, variables=variables):
            return jnp.sum(model.apply({**variables, "params": params}, images, train=False) ** 2)

        gradient = jax.jit(jax.grad(loss))
        assert ("dot_general" in gradient.lower(variables["params"]).as_text()) == (kernels == "fused")
        found[kernels] = gradient(variables["params"])
    jax.tree.map(assert_equal_gradients, found["fused"], found["plain"])
