"""Attention by config: what "cudnn" computes, what it lowers to, and where it is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import vit
from test_train import tiny

from maskcl_jax.errors import UserError
from maskcl_jax.methods import create
from maskcl_jax.models import attention, layers
from maskcl_jax.models.vit import ViT
from maskcl_jax.training import sharding
from maskcl_jax.training.step import Program

# JAX has no other way to lower for a GPU where none is.
cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")


def plain_attention(q, k, v):
    """As it is written in a textbook, its gradient left to JAX."""
    return jax.nn.softmax(q @ jnp.swapaxes(k, 2, 3) / q.shape[-1] ** 0.5, axis=-1) @ v


def derived_gelu(x):
    return 0.5 * x * (1 + jax.lax.erf(x / 2**0.5))


@pytest.mark.parametrize(
    ("ours", "reference", "shapes"),
    [
        (attention.attend, plain_attention, [(2, 3, 7, 5)] * 3),
        (layers.product, jnp.matmul, [(2, 5, 4), (4, 3)]),
        (layers.product, jnp.matmul, [(5, 4), (4, 3)]),
        (layers.gelu, derived_gelu, [(4, 6)]),
    ],
    ids=["attend", "product", "product-2d", "gelu"],
)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 3e-2)])
def test_gradients_of_our_own(ours, reference, shapes, dtype, bound):
    """Value and every gradient: beside JAX's in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        given = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
        out, pull = jax.vjp(reference, *(x.astype("float64") for x in given))
        towards = jnp.asarray(rng.normal(size=out.shape), dtype)
        mine, mine_pull = jax.vjp(ours, *given)
        assert mine.dtype == towards.dtype
        for got, want in zip([mine, *mine_pull(towards)], [out, *pull(towards.astype("float64"))], strict=True):
            assert np.linalg.norm(got.astype("float64") - want) <= bound * np.linalg.norm(want)


@pytest.mark.parametrize("rows", [(5,), (2, 5)])
def test_kernel_gradients_of_all_platforms(rows):
    """The CPU's form, and the other devices': beside the sum written out."""
    rng = np.random.default_rng(0)
    x, gradient = (rng.normal(size=(*rows, width)).astype(np.float32) for width in (4, 3))
    want = np.einsum("rd,re->de", x.reshape(-1, 4).astype(np.float64), gradient.reshape(-1, 3).astype(np.float64))
    for form in (layers.of_rows, layers.of_flat_rows):
        np.testing.assert_allclose(form(x, gradient), want, rtol=1e-5, atol=1e-6)


def test_weights_of_distant_scores_stay_finite():
    q = jnp.asarray([[[[300.0, 0.0], [-300.0, 0.0]]]])
    value, gradient = jax.value_and_grad(lambda q: attention.attend(q, q, q).sum())(q)
    assert float(value) == 0.0  # each attends to itself alone
    assert np.isfinite(gradient).all()


def test_cudnn_is_the_same_attention(monkeypatch):
    """Its implementation replaced by XLA's: the arguments it is given are right."""
    asked = []
    original = jax.nn.dot_product_attention

    def on_cpu(*arguments, implementation, **lengths):
        asked.append(implementation)
        return original(*arguments, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    variables = vit().init(jax.random.key(1), images)
    for function in (ViT.__call__, lambda model, x: model.cls_attention(model.embed(x))):
        plain, other = (vit(attention=a).apply(variables, images, method=function) for a in ("xla", "cudnn"))
        np.testing.assert_allclose(other, plain, atol=1e-5)
    # Both blocks' values, and those of the first on the way to the last one's cls row.
    assert asked == ["cudnn"] * 3


def test_cudnn_lowers_to_its_call(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    model = vit(attention="cudnn", dtype=jnp.bfloat16)
    images = jnp.zeros((2, 16, 24, 3))
    variables = vit().init(jax.random.key(0), images)
    step = jax.jit(jax.grad(lambda v: model.apply(v, images).astype(jnp.float32).sum()))
    text = step.trace(variables).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__cudnn$fmhaSoftmax(") == model.depth, text


def of(name, **fields):
    c = tiny(name)
    c.update_from_flattened_dict({"model.attention": "cudnn", "dtype": "bfloat16"} | fields)
    return c


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "float32"}, "model.attention='cudnn' computes in 16 bits, not in dtype='float32'"),
        ({"model.attention": "flash"}, "model.attention='flash' is unknown: use one of xla, cudnn"),
        ({"model.heads": 16}, "model.attention='cudnn' does not take model.width"),
        ({"method.decoder.heads": 16}, "model.attention='cudnn' does not take method.decoder.width"),
    ],
)
def test_what_cudnn_does_not_take_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        create(of("mae", **fields))


def test_a_platform_without_it_is_named():
    c = of("mae")
    with pytest.raises(UserError, match=r"model\.attention='cudnn' needs an NVIDIA GPU, and this runs on cpu"):
        Program.of(c, sharding.create_mesh(c.mesh), create(c), 1000)


def test_runs_of_earlier_versions_have_no_such_field():
    c = tiny("mae")
    with c.unlocked():
        del c.model.attention
    assert create(c).encoder.attention == "xla"
    assert "attention" not in tiny("moco_v2").model


@pytest.mark.parametrize(("file", "wide"), [("mae", 0), ("cmae", 3), ("moco_v2", 3)])
def test_networks_multiply_in_16_bits(file, wide):
    """Online, target and backward; what is left in float32 is the contrast and its two gradients."""
    config = tiny(file, dtype="bfloat16")
    program = Program.of(config, sharding.create_mesh(config.mesh), create(config), 1000)
    text = program.trace().lower().as_text()
    kinds = re.findall(r"stablehlo\.(?:dot_general|convolution)\b.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)", text)
    assert sum("f32" in pair for pair in kinds) == wide
    assert sum(pair == ("bf16", "bf16") for pair in kinds) > 10
