"""Layouts: complete, reversible, and strict."""

import jax
import numpy as np
import pytest
from helpers.tiny import filled, tiny

from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert, layouts
from maskcl_jax.methods import create
from maskcl_jax.verify.cases import shape_of


def weights(name):
    method = create(tiny(name))
    params, state = filled(method)
    rows = {"mae": layouts.mae, "ccmim": layouts.ccmim}[name](1, 1)
    return {"params": params, **state}, rows, shape_of(method)


@pytest.mark.parametrize("name", ["mae", "ccmim"])
def test_there_and_back_is_bit_exact(name):
    tree, rows, shape = weights(name)
    state = convert.to_torch(tree, rows, shape)
    back = convert.from_torch(state, rows, shape)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, tree), back)


def test_the_keys_are_the_official_ones():
    tree, rows, shape = weights("mae")
    state = convert.to_torch(tree, rows, shape)
    assert state["patch_embed.proj.weight"].shape == (32, 3, 8, 8)
    assert state["blocks.0.attn.qkv.weight"].shape == (96, 32)
    assert state["pos_embed"].shape == (1, 17, 32)
    assert {"cls_token", "mask_token", "decoder_pos_embed", "decoder_blocks.0.mlp.fc2.bias", "norm.weight"} <= set(
        state
    )


def test_what_does_not_fit_is_listed():
    tree, rows, shape = weights("mae")
    state = convert.to_torch(tree, rows, shape)
    state["head.weight"] = state.pop("norm.bias")
    with pytest.raises(UserError, match=r"missing norm\.bias; left over head\.weight"):
        convert.from_torch(state, rows, shape)


def test_the_position_table_of_another_method_is_refused():
    tree, rows, shape = weights("mae")
    state = convert.to_torch(tree, rows, shape._replace(order="mocov3"))
    with pytest.raises(UserError, match="pos_embed"):
        convert.from_torch(state, rows, shape)


def test_cmae_has_every_key_of_the_official_model():
    rows = layouts.cmae(12, 8, 2) + layouts.cmae_statistics()
    assert len({row.theirs for row in rows}) == len(rows) == 458


@pytest.mark.parametrize("name", ["cmae", "mocov3"])
def test_targets_travel_too(name):
    method = create(tiny(name))
    params, state = filled(method)
    tree = {"params": params, "target_params": method.target_params(params), **state}
    rows = {"cmae": layouts.cmae(1, 1, 1) + layouts.cmae_statistics(), "mocov3": layouts.mocov3(1)}[name]
    widths = {"encoder": 32, "decoder": 16, "feature_decoder": 16}
    shape = convert.Shape(8, 3, (4, 4), widths, order="mocov3")
    back = convert.from_torch(convert.to_torch(tree, rows, shape), rows, shape)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, tree), back)
