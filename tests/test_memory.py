"""The cheapest remat that fits: by the estimate of a step's memory."""

import types

import pytest
from helpers.tiny import CONFIGS, tiny

from maskcl_jax import config as config_lib
from maskcl_jax.methods import create
from maskcl_jax.training import memory, sharding
from maskcl_jax.training.step import Program

GIB = 2**30


def test_on_a_cpu_nothing_is_chosen():
    config = tiny("mae", remat="auto")
    mesh = sharding.create_mesh()
    assert memory.usable_memory(mesh.devices.flat[0]) is None
    assert memory.with_remat(config, mesh) is config
    assert memory.describe(config) == ""
    assert create(config, mesh).encoder.remat == "none"


def test_the_first_that_fits_is_chosen_and_said():
    config = tiny("mae", remat="auto", dtype="bfloat16", kernels="plain", **{"model.depth": 3})
    mesh = sharding.create_mesh()
    needed = {}
    for remat in memory.KEPT:
        config.remat = remat
        needed[remat] = memory.estimate(config, mesh) / memory.MARGIN
        assert memory.with_remat(config, mesh, memory=1) is config  # what the config says is kept
    config.remat = "auto"
    assert needed["none"] > needed["cheap"]
    for available, remat in (
        (needed["none"] + 1, "none"),
        (needed["none"] - 1, "cheap"),
        (needed["cheap"] + 1, "cheap"),
        (needed["cheap"] - 1, "blocks"),
    ):
        chosen = memory.with_remat(config, mesh, memory=available)
        assert chosen.remat == remat
        assert memory.describe(chosen) == ("" if remat == "none" else f", remat={remat}")
        assert create(chosen, mesh).encoder.remat == remat
    assert config.remat == "auto"


def test_micro_batches_need_less():
    config = tiny("mae", remat="none", dtype="bfloat16", batch_size=16)
    whole = memory.estimate(config, sharding.create_mesh())
    config.accumulation = 4
    assert memory.estimate(config, sharding.create_mesh()) < whole


# A chip's part of a batch of 4096 on 16 chips. By the TPU's compiler (docs/clusters.md) MAE fits a v5e without remat;
# MoCo v3 and SimCLR with a ViT fit a v5e with "blocks" only, and MoCo v3 a v4 with "cheap".
@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("mae", {15.75: "none"}),
        ("mocov3", {15.75: "blocks", 30.75: "cheap", 60.0: "none"}),
        ("simclr_vit", {15.75: "blocks"}),
    ],
)
def test_the_imagenet_configs_fit_a_tpu(name, choices, monkeypatch):
    config = config_lib.load(CONFIGS[name], "imagenet,batch_size=256,kernels=plain,image_chunks=1")
    assert config.remat == "auto"
    mesh, estimate, known = sharding.create_mesh(), memory.estimate, {}

    def once(config, mesh):  # tracing takes seconds
        if config.remat not in known:
            known[config.remat] = estimate(config, mesh)
        return known[config.remat]

    monkeypatch.setattr(memory, "estimate", once)
    for gib, remat in choices.items():
        assert memory.with_remat(config, mesh, memory=int(gib * GIB)).remat == remat


@pytest.mark.parametrize(
    ("kind", "platform", "stats", "usable"),
    [
        ("TPU v5 lite", "tpu", None, int(15.75 * GIB)),
        ("TPU v3", "tpu", None, int(30.96 * GIB / 2)),
        ("NVIDIA H200", "gpu", {"bytes_limit": 7}, 7),
        ("NVIDIA H200", "gpu", None, None),
        ("cpu", "cpu", {"bytes_limit": 7}, None),
    ],
)
def test_the_memory_of_a_device(kind, platform, stats, usable):
    device = types.SimpleNamespace(device_kind=kind, platform=platform, memory_stats=lambda: stats)
    assert memory.usable_memory(device) == usable


def test_the_flops_of_a_model_are_those_without_remat():
    mesh = sharding.create_mesh()
    config = tiny("mae", remat="auto", kernels="plain")
    auto = Program.from_config(config, mesh, create(config, mesh), 100).model_flops()
    config.remat = "blocks"
    assert Program.from_config(config, mesh, create(config, mesh), 100).model_flops() == auto
