"""The two sets of gradients: plain ones have forward mode, and those written by hand are the same values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import noise, vit
from helpers.tiny import tiny

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create
from maskcl_jax.models import kernels
from maskcl_jax.models.classifier import ViTClassifier
from maskcl_jax.models.heads import MLP, MaskHead, Segmenter
from maskcl_jax.models.resnet import ResNet
from maskcl_jax.models.vit import Decoder, ViT
from maskcl_jax.training.run_folder import differences


def textbook_attention(q, k, v):
    """(B, heads, T, d) each; the gradient is JAX's."""
    return jax.nn.softmax(q @ jnp.swapaxes(k, 2, 3) / q.shape[-1] ** 0.5, axis=-1) @ v


def textbook_layer_norm(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def textbook_gelu(x):
    return 0.5 * x * (1 + jax.lax.erf(x / 2**0.5))


@pytest.mark.parametrize(
    ("ours", "reference", "shapes"),
    [
        (kernels.attention, textbook_attention, [(2, 3, 7, 5)] * 3),
        (kernels.matmul, jnp.matmul, [(2, 5, 4), (4, 3)]),
        (kernels.matmul, jnp.matmul, [(5, 4), (4, 3)]),
        (kernels.gelu, textbook_gelu, [(4, 6)]),
        (kernels.normalize, textbook_layer_norm, [(2, 4, 6), (6,), (6,)]),
    ],
    ids=["attention", "matmul", "matmul-2d", "gelu", "layer_norm"],
)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 3e-2)])
def test_fused_gradients_are_those_of_float64(ours, reference, shapes, dtype, bound):
    """Value and every gradient: beside JAX's in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        given = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
        out, pull = jax.vjp(reference, *(x.astype("float64") for x in given))
        mine, mine_pull = jax.vjp(ours, *given)
        assert mine.dtype == ("float32" if ours is kernels.normalize else dtype)
        towards = jnp.asarray(rng.normal(size=out.shape), mine.dtype)
        for got, want in zip([mine, *mine_pull(towards)], [out, *pull(towards.astype("float64"))], strict=True):
            assert np.linalg.norm(got.astype("float64") - want) <= bound * np.linalg.norm(want)


@pytest.mark.parametrize("rows", [(5,), (2, 5)])
def test_kernel_gradients_of_all_platforms(rows):
    """The CPU's form, and the other devices': beside the sum written out."""
    rng = np.random.default_rng(0)
    x, gradient = (rng.normal(size=(*rows, width)).astype(np.float32) for width in (4, 3))
    want = np.einsum("rd,re->de", x.reshape(-1, 4).astype(np.float64), gradient.reshape(-1, 3).astype(np.float64))
    for form in (kernels.sum_of_rows, kernels.sum_of_flat_rows):
        np.testing.assert_allclose(form(x, gradient), want, rtol=1e-5, atol=1e-6)


def test_weights_of_distant_scores_stay_finite():
    q = jnp.asarray([[[[300.0, 0.0], [-300.0, 0.0]]]])
    value, gradient = jax.value_and_grad(lambda q: kernels.attention(q, q, q).sum())(q)
    assert float(value) == 0.0  # each attends to itself alone
    assert np.isfinite(gradient).all()


# --- Whole networks -------------------------------------------------------------------------------------------

IMAGES = jax.random.normal(jax.random.key(1), (2, 16, 24, 3))
TOKENS = jax.random.normal(jax.random.key(1), (2, 4, 64))
MAPS = jax.random.normal(jax.random.key(1), (4, 4, 4, 8))
IDS = jnp.array([[5, 0, 2], [1, 4, 3]]), jnp.array([[1, 3, 4], [0, 2, 5]])


shallow = functools.partial(vit, depth=1)


def decoder(**fields):
    return Decoder(grid=(2, 3), width=32, depth=1, heads=2, out=12, **fields)


def classifier(**fields):
    return ViTClassifier(encoder=shallow(**fields), num_classes=5)


# name -> (module of some fields, what it is given, how it is called)
TRANSFORMERS = {
    "vit": (shallow, (IMAGES,), ViT.__call__),
    "vit-scan": (functools.partial(vit, scan=True, remat="cheap"), (IMAGES,), ViT.__call__),
    "vit-remat": (functools.partial(shallow, remat="blocks"), (IMAGES,), ViT.__call__),
    "vit-cls": (shallow, (IMAGES,), lambda model, x: model.encode_cls(model.embed(x, IDS[0]))),
    "vit-attention": (vit, (IMAGES,), lambda model, x: model.cls_attention(model.embed(x))),
    "decoder": (decoder, (TOKENS, *IDS), Decoder.__call__),
    "decoder-masked": (decoder, (TOKENS, *IDS), lambda model, *given: model(*given, only_masked=True)),
    "classifier": (classifier, (IMAGES,), lambda model, x: model(x, train=True)),
}
OTHERS = {
    "resnet": (functools.partial(ResNet, stages=(1, 2), width=8, stem="small"), (IMAGES,)),
    "resnet-remat": (
        functools.partial(ResNet, stages=(1, 1, 1), bottleneck=False, width=8, stem="small", remat="cheap"),
        (IMAGES,),
    ),
    "projector": (functools.partial(MLP, sizes=(16, 8), norms=("affine", "plain")), (MAPS[:, 0, 0],)),
    "mask-head": (functools.partial(MaskHead, blocks=1), (MAPS,)),
    "segmenter": (functools.partial(Segmenter, kind="decoder", num_classes=3, width=4), (MAPS, (8, 8))),
}


def of_transformer(name: str, **fields):
    """(parameters of noise, the network as a function of them)."""
    make, given, method = TRANSFORMERS[name]
    model = make(**fields)
    options = {"train": True} if name == "classifier" else {}
    shapes = jax.eval_shape(functools.partial(model.init, **options), jax.random.key(0), *given)["params"]
    return noise(shapes, center=0.1), lambda params: model.apply({"params": params}, *given, method=method)


def of_convnet(name: str):
    """(parameters of noise, the network in training as a function of them)."""
    make, given = OTHERS[name]
    model = make()
    shapes = jax.eval_shape(lambda key: model.init(key, *given, train=True), jax.random.key(0))
    stats = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes["batch_stats"])

    def apply(params):
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, *given, train=True, mutable=["batch_stats"])[0]

    return noise(shapes["params"], center=0.1), apply


def inner(a, b):
    """The sum of all products of two trees."""
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def check_forward_mode(params, apply, reverse):
    """jvp of `apply`: beside a difference quotient, and beside the vjp of `reverse`."""
    apply = jax.jit(apply)
    towards, step = noise(jax.eval_shape(apply, params), seed=2), 1e-2

    @jax.jit
    def compare(params):
        (gradient,) = jax.vjp(reverse, params)[1](towards)
        # Half along the gradient: a random direction in so many dimensions is across it.
        direction = jax.tree.map(jnp.add, unit(gradient), unit(noise(params, seed=1)))
        _, tangent = jax.jvp(apply, (params,), (direction,))
        scale = jnp.sqrt(inner(gradient, gradient))
        return inner(towards, tangent) / scale, inner(gradient, direction) / scale, direction, scale

    forward, backward, direction, scale = compare(params)
    ahead, behind = (apply(jax.tree.map(lambda p, d, by=by: p + by * d, params, direction)) for by in (step, -step))
    quotient = inner(towards, (ahead - behind) / (2 * step)) / scale
    assert forward > 0.5  # of about 1
    np.testing.assert_allclose(backward, forward, rtol=1e-4)
    np.testing.assert_allclose(quotient, forward, rtol=6e-2)  # ReLUs have kinks


def unit(tree):
    """A tree of length 1."""
    length = jnp.sqrt(inner(tree, tree))
    return jax.tree.map(lambda x: x / length, tree)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_plain_transformers_have_forward_mode(name):
    params, apply = of_transformer(name, kernels="plain")
    check_forward_mode(params, apply, of_transformer(name, kernels="fused")[1])


@pytest.mark.parametrize("name", OTHERS)
def test_convnets_and_heads_have_forward_mode(name):
    params, apply = of_convnet(name)
    check_forward_mode(params, apply, apply)


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [(name, "float32", 2e-6) for name in TRANSFORMERS]
    + [(name, "bfloat16", 3e-2) for name in ("vit-cls", "decoder-masked")],
)
def test_plain_and_fused_are_the_same_network(name, dtype, bound):
    (params, plain), (others, fused) = (of_transformer(name, kernels=k, dtype=dtype) for k in ("plain", "fused"))
    jax.tree.map(np.testing.assert_array_equal, params, others)  # the same names and shapes
    towards = noise(jax.eval_shape(plain, params), seed=2)

    @functools.partial(jax.jit, static_argnums=0)
    def run(apply, params):
        out, pull = jax.vjp(apply, params)
        return out.astype(jnp.float32), pull(towards)[0]

    (value, gradient), (other, other_gradient) = run(plain, params), run(fused, params)
    assert np.linalg.norm(value - other) <= bound * np.linalg.norm(value)
    difference = jax.tree.map(jnp.subtract, gradient, other_gradient)
    assert inner(difference, difference) ** 0.5 <= bound * inner(gradient, gradient) ** 0.5


def test_initial_values_are_the_same():
    images = jnp.zeros((1, 16, 24, 3))
    plain, fused = (jax.jit(shallow(kernels=kind).init)(jax.random.key(0), images) for kind in ("plain", "fused"))
    jax.tree.map(np.testing.assert_array_equal, plain, fused)


# --- The switch -----------------------------------------------------------------------------------------------


def test_auto_is_fused_on_a_cpu_and_plain_elsewhere():
    assert (kernels.resolve("auto", "cpu"), kernels.resolve("auto", "gpu"), kernels.resolve("auto", "tpu")) == (
        "fused",
        "plain",
        "plain",
    )
    assert kernels.resolve("auto") == "fused"  # the tests run on CPUs
    assert kernels.resolve("plain", "cpu") == "plain"


@pytest.mark.parametrize(("given", "kind"), [("auto", "fused"), ("plain", "plain"), ("fused", "fused")])
@pytest.mark.parametrize("name", ["mae", "cmae", "mocov3"])
def test_networks_of_a_method_take_the_configs_kernels(name, given, kind):
    method = create(tiny(name, kernels=given))
    modules = [getattr(method, part, None) for part in ("encoder", "decoder", "feature_decoder")]
    assert {module.kernels for module in modules if module is not None} == {kind}


@pytest.mark.parametrize(("kind", "by_hand"), [("plain", False), ("fused", True)])
def test_plain_networks_have_no_gradient_written_by_hand(kind, by_hand):
    params, apply = of_transformer("vit", kernels=kind)
    assert ("custom_vjp_call" in str(jax.make_jaxpr(apply)(params))) == by_hand


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match=r"kernels='fast' is unknown: use auto, plain, fused"):
        config_lib.check(tiny("mae", kernels="fast"))


def test_a_run_resumes_with_other_kernels():
    """Also one of an earlier version, which has no such field."""
    stored = config_lib.flat(tiny("mae"))
    assert differences(tiny("mae", kernels="plain"), stored) == []
    del stored["kernels"]
    assert differences(tiny("mae", kernels="plain"), stored) == []
    assert config_lib.unflat(stored).kernels == "auto"
