"""Chunks of images: the same loss and gradient as of all at once, and who may ask for them."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import context_of
from helpers.tiny import colourless, filled, tiny
from helpers.views import batch_of

from maskcl_jax import config
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create
from maskcl_jax.ops import chunked
from maskcl_jax.training import sharding

CASES = [("mae", {}), ("ccmim", {}), ("ccmim", {"align_grad": "both"}), ("cmae", {})]
CASES += [("macrl", {"loss_on": "all"}), ("macrl", {"mode": "ema_full"})]

# BatchNorm takes the batch's mean away, and with it what these biases add: their gradient is zero, but for rounding.
BEFORE_BATCH_NORM = (
    "projector/fc1/bias",
    "predictor/fc1/bias",
    "feature_decoder/pred/bias",
    "feature_decoder/norm/bias",
)


def gradient_of(name, chunks, **method):
    """(loss, gradients) of one step of a method."""
    c = tiny(name, image_chunks=chunks, **colourless(name))
    c.method.update(method)
    method = create(c)
    params, model_state = filled(method)
    context, batch = context_of(method, params, model_state), batch_of(method)

    def loss(params, batch):  # an argument, as in training: folded as a constant it made one sum noisier
        return method.loss(params, batch, context).loss

    return jax.jit(jax.value_and_grad(loss))(params, batch)


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_chunks_change_neither_loss_nor_gradient(name, fields):
    (value, grads), (expected, whole) = (gradient_of(name, chunks, **fields) for chunks in (4, 1))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole):
        where = "/".join(key.key for key in path)
        found = functools.reduce(lambda tree, key: tree[key.key], path, grads)
        if where in BEFORE_BATCH_NORM:
            assert float(jnp.maximum(jnp.abs(found), jnp.abs(leaf)).max()) <= 2e-6, where
        else:
            noise = 1e-7 + 3e-5 * float(jnp.sqrt(jnp.mean(leaf**2)))
            assert float(jnp.abs(found - leaf).max()) <= noise, where


def test_a_weighted_loss_has_its_weight_in_the_gradient():
    def loss(params, x, given):
        return jnp.mean((x @ params - given) ** 2)

    params, x, given = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 2), (8, 3), (8, 2)]))

    def weighted(mean):
        return jax.grad(lambda p, x: 0.3 * mean(p, x) + jnp.sum(p), argnums=(0, 1))(params, x)

    chunks = weighted(lambda p, x: chunked.mean_loss(loss, 4, p, x, given))
    for found, expected in zip(chunks, weighted(lambda p, x: loss(p, x, given)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("platform", "batch", "devices", "accumulation", "chunks"),
    [("cpu", 32, 1, 1, 4), ("cpu", 32, 2, 1, 2), ("cpu", 64, 1, 2, 4), ("cpu", 4, 1, 1, 1), ("tpu", 4096, 8, 1, 1)],
)
def test_a_cpu_takes_chunks_of_1500_rows(platform, batch, devices, accumulation, chunks):
    device = SimpleNamespace(platform=platform)
    mesh = SimpleNamespace(size=devices, devices=np.array([device] * devices))
    asked = SimpleNamespace(batch_size=batch, accumulation=accumulation)
    assert chunked.chunks_for(asked, mesh, length=197) == chunks


def test_the_devices_settle_what_the_config_leaves_to_them(monkeypatch):
    mesh = sharding.create_mesh(tiny("mae").mesh, jax.devices()[:1])
    monkeypatch.setattr(chunked, "MIN_ROWS", 2 * 17)
    assert create(tiny("mae"), mesh).image_chunks == 4
    assert create(tiny("mae", image_chunks=2), mesh).image_chunks == 2
    assert create(tiny("mae")).image_chunks == 1


@pytest.mark.parametrize("name", ["moco_v2", "mocov3", "cmae"])
def test_chunks_without_such_a_decoder_are_refused(name):
    c = tiny(name, image_chunks=2)
    if name == "cmae":
        c.method.feature_decoder.kind = "shared"
    with pytest.raises(UserError, match=f"image_chunks=2 does not go with method.name='{name}'"):
        create(c)


def test_a_number_of_chunks_below_zero_is_refused():
    with pytest.raises(UserError, match="image_chunks=-1 is out of range"):
        config.check(tiny("mae", image_chunks=-1))
