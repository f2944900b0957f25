"""ResNets: published sizes, any stages, BatchNorm by groups and against torch, kernels and remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import assert_equal_but_for_rounding, assert_equal_gradients, noise
from helpers.tiny import tiny

from maskcl_jax import config as config_lib
from maskcl_jax.config import encoder_size
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import catalog, convert, layouts
from maskcl_jax.methods import create
from maskcl_jax.models.batch_norm import BatchNorm
from maskcl_jax.models.kernels import convolve, convolve_pointwise
from maskcl_jax.models.resnet import RESNETS, ResNet, ResNetSize
from maskcl_jax.training import run_folder


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


def test_a_resnet_that_keeps_less_is_the_same_resnet():
    images = jnp.asarray(np.random.default_rng(1).standard_normal((4, 8, 8, 3)), jnp.float32)
    results = []
    for remat in ("none", "cheap", "blocks"):
        model = ResNet(stages=(1, 1), bottleneck=False, width=8, stem="small", remat=remat)
        variables = noise(
            jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), images), center=1.0, scale=0.1
        )

        def loss(params, model=model, variables=variables):
            out, state = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.mean(out**2), state

        assert ("remat" in str(jax.make_jaxpr(loss)(variables["params"]))) == (remat != "none")
        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    for one in results[1:]:
        jax.tree.map(assert_equal_but_for_rounding, one, results[0])


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
        variables = noise(
            jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(1), images), center=1.0, scale=0.1
        )

        def loss(params, model=model, variables=variables):
            return jnp.sum(model.apply({**variables, "params": params}, images, train=False) ** 2)

        gradient = jax.jit(jax.grad(loss))
        assert ("dot_general" in gradient.lower(variables["params"]).as_text()) == (kernels == "fused")
        found[kernels] = gradient(variables["params"])
    # Measured: 5e-7 of gradients of 1e8 and more.
    jax.tree.map(assert_equal_gradients, found["fused"], found["plain"])
