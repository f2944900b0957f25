"""Attention by config: what "cudnn" computes, what it lowers to, and where it is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import noise, vit
from helpers.tiny import tiny

from maskcl_jax.errors import UserError
from maskcl_jax.methods import create
from maskcl_jax.models.vit import ViT
from maskcl_jax.training import sharding
from maskcl_jax.training.step import Program


def test_cudnn_is_the_same_attention(monkeypatch):
    """Its implementation replaced by XLA's: the arguments it is given are right."""
    calls = []
    original = jax.nn.dot_product_attention

    def on_cpu(*arguments, implementation, **lengths):
        calls.append((implementation, "key_value_seq_lengths" in lengths))
        return original(*arguments, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)

    def both_ways(images, function, **fields):
        """The function of a ViT with either attention."""
        xla, cudnn = (vit(attention=a, kernels="fused", **fields) for a in ("xla", "cudnn"))
        variables = noise(jax.eval_shape(xla.init, jax.random.key(1), images))
        return [jax.jit(functools.partial(m.apply, method=function))(variables, images) for m in (xla, cudnn)]

    images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    for function in (ViT.__call__, lambda model, x: model.cls_attention(model.embed(x))):
        np.testing.assert_allclose(*both_ways(images, function), rtol=0, atol=1e-6)
    # Both blocks' values, and those of the first on the way to the last one's cls row.
    assert calls == [("cudnn", True)] * 3  # seven tokens: padded
    calls.clear()
    np.testing.assert_allclose(*both_ways(images[:, :8], ViT.__call__, image_size=(8, 24), depth=1), rtol=0, atol=1e-6)
    assert calls == [("cudnn", False)]  # four tokens


def test_cudnn_lowers_to_its_call(monkeypatch):
    # JAX has no other way to lower for a GPU where none is.
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    model = vit(attention="cudnn", dtype=jnp.bfloat16)
    images = jnp.zeros((2, 16, 24, 3))
    variables = noise(jax.eval_shape(model.init, jax.random.key(0), images))
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
        Program.from_config(c, sharding.create_mesh(c.mesh), create(c), 1000)


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
    program = Program.from_config(config, sharding.create_mesh(config.mesh), create(config), 1000)
    text = program.trace().lower().as_text()
    kinds = re.findall(r"stablehlo\.(?:dot_general|convolution)\b.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)", text)
    assert sum("f32" in pair for pair in kinds) == wide
    assert sum(pair == ("bf16", "bf16") for pair in kinds) > 10
