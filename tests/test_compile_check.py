"""Compiling for TPUs that are not there: what is counted, what is read off a program, what is refused."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from helpers.views import batch_of
from test_train import ROOT, fields_of, tiny

from maskcl_jax import compile_check
from maskcl_jax.errors import UserError
from maskcl_jax.methods import METHODS, create
from maskcl_jax.performance import chips, flops, hlo
from maskcl_jax.training import sharding
from maskcl_jax.views import batch_shapes

# As libtpu writes it: a loop of 6 rounds with one gather that is shown twice, a fused reduce-scatter, a pair.
PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[6,512]{1,0})->f32[]}

%fused.1 (param_0: bf16[1,512,256]) -> bf16[1,512,512] {
  %param_0 = bf16[1,512,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[1,512,512]{2,1,0} all-gather(%param_0), channel_id=7, dimensions={2}
}

%fused.2 (param_1: bf16[1,512,256]) -> bf16[1,512,512] {
  %param_1 = bf16[1,512,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,512,512]{2,1,0} all-gather(%param_1), channel_id=7, dimensions={2}
}

%all-reduce-scatter.3 (input.1: bf16[256,512]) -> bf16[64,512] {
  %input.1 = bf16[256,512]{1,0} parameter(0)
  %all-reduce.9 = bf16[256,512]{1,0} all-reduce(%input.1), channel_id=8, to_apply=%add
  ROOT %slice = bf16[64,512]{1,0} slice(%all-reduce.9), slice={[0:64], [0:512]}
}

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%body (tuple.1: (s32[], bf16[256,512], /*index=2*/bf16[1])) -> (s32[], bf16[256,512], /*index=2*/bf16[1]) {
  %one = s32[]{:T(128)} constant(1)
  %fusion.1 = bf16[1,512,512]{2,1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %fusion.2 = bf16[1,512,512]{2,1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %fusion.3 = bf16[64,512]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
}

%condition (tuple.2: (s32[], bf16[256,512])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%i, %six), direction=LT
}

%never (z: f32[4]) -> f32[4] {
  ROOT %all-reduce.99 = f32[4]{0} all-reduce(%z), channel_id=99, to_apply=%add
}

ENTRY %main (param.4: f32[6,512]) -> f32[] {
  %while.1 = (s32[], bf16[256,512]) while(%tuple), condition=%condition, body=%body
  %all-reduce.2 = (f32[64]{0}, bf16[8,4]{1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %permute.1 = (f32[10]{0}, f32[10]{0}) collective-permute-start(%c), channel_id=2, source_target_pairs={{0,1}}
  %permute.2 = f32[10]{0} collective-permute-done(%permute.1)
  ROOT %result = f32[] constant(0)
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    found = hlo.collectives(PROGRAM)
    assert found == {
        "all-gather": (6, 6 * 512 * 512 * 2),
        "reduce-scatter": (6, 6 * 256 * 512 * 2),
        "all-reduce": (1, 64 * 4 + 32 * 2),
        "collective-permute": (1, 40),
    }


@pytest.mark.parametrize(
    ("shape", "size"), [("f32[]", 4), ("(pred[3]{0}, s8[2,2])", 7), ("bf16[4,0]", 0), ("s4[4]", 2), ("token[]", 0)]
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.array_bytes(shape) == size


def test_flops_of_products_loops_and_branches():
    def program(x, w):
        y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        return jax.lax.cond(y.sum() > 0, lambda y: y @ w[0], lambda y: y, y)

    shapes = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((7, 5, 5), jnp.float32)
    one = 2 * 3 * 5 * 5
    assert flops.matrix_flops(jax.make_jaxpr(jax.jit(program))(*shapes)) == 8 * one


def test_flops_of_a_convolution_and_its_gradients():
    """Without padding every product is real, and both gradients take as many as the forward pass."""

    def loss(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=dimensions, feature_group_count=2
        ).sum()

    x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32), jax.ShapeDtypeStruct((2, 2, 3, 4), jnp.float32)
    forward = 2 * (2 * 4 * 4 * 4) * (2 * 2 * 3)
    assert flops.matrix_flops(jax.make_jaxpr(loss)(x, kernel)) == forward
    assert flops.matrix_flops(jax.make_jaxpr(jax.grad(loss, argnums=1))(x, kernel)) == 2 * forward
    # The gradient of x is a convolution of the kernel turned round, over its zero-padded and dilated result.
    both = flops.matrix_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    assert both == pytest.approx(3 * forward)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_batch_shapes_are_those_of_a_batch(name):
    method = create(tiny(name))
    described = batch_shapes(method.views, 8, method.config.data.channels)
    assert described.pop("label") == ((8,), "int32")
    assert described.pop("index") == ((8,), "int64")
    assert described == {key: (value.shape, str(value.dtype)) for key, value in batch_of(method).items()}


def test_the_tables_fit_together():
    names = [chip.name for chip in chips.CHIPS]
    assert len(set(names)) == len(names)
    for generation, shapes in compile_check.TOPOLOGIES.items():
        chip = compile_check.chip_of(f"{generation}:{shapes[0]}")
        assert chip.usable_gib / chip.hbm_gib == pytest.approx(1, abs=0.05)
        assert [math.prod(map(int, shape.split("x"))) for shape in shapes] == [4, 8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5", "v5p"),
        ("TPU v5 lite", "v5e"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("cpu", None),
    ],
)
def test_the_chip_of_a_device(kind, name):
    chip = chips.chip_of(kind)
    assert (chip and chip.name) == name


@pytest.mark.parametrize(("first", "limit"), [(256, 300), (256, 256), (256, 100), (256, 1), (16, 5), (16, 0), (1, 3)])
def test_the_largest_batch_is_found_to_an_eighth(first, limit):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    found = compile_check.largest(first, first <= limit, fits)
    assert found <= limit <= found + max(1, found // 8)
    assert first not in tried
    assert len(tried) == len(set(tried)) <= 12


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.20G of 15.75G hbm.", 17.2),
        ("the total memory required for HLO temporaries (512.00G) exceeds available HBM (15.75G).", 512),
        ("something else", None),
    ],
)
def test_what_a_refused_program_would_need(message, gib):
    needed = compile_check.needed_bytes(message)
    assert needed == (None if gib is None else int(gib * 2**30))


@pytest.mark.parametrize("topology", ["v5e:3x3", "v5e", "v4:4x4", "v9:2x2", ""])
def test_an_unknown_topology_is_refused_with_those_known(topology):
    with pytest.raises(UserError, match=rf"^--topology={topology} is unknown: .*v4: 2x2x1.* v6e: .*16x16$"):
        compile_check.devices_of(topology)


def test_without_libtpu_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu.* pip install 'jax\[tpu\]'$"):
        compile_check.devices_of("v5e:4x4")


def test_a_batch_that_the_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(sharding, "create_mesh", lambda *_: types.SimpleNamespace(shape={"data": 2}, size=2))
    with pytest.raises(UserError, match="batch_size=9"):
        compile_check.program_of(tiny("mae", batch_size=9), [])


def report(**fields):
    known = {
        "method": "mae",
        "preset": "imagenet",
        "topology": "v5e:4x4",
        "chips": 16,
        "batch_size": 4096,
        "fits": False,
        "parameters": 10**8,
        "state_bytes": 2**30,
        "peak_bytes": None,
        "usable_bytes": 2**34,
        "matrix_flops": 197e12,
        "model_flops": 197e12,
        "compiler_flops": None,
        "collectives": None,
        "compile_seconds": 1.0,
        "versions": "",
        "images": 4096 * 3600,
    }
    return compile_check.Report(**known | fields)


def test_a_step_that_does_not_fit_is_told_with_what_is_known():
    text = compile_check.as_text(report(), 0.5)
    assert "NO: the compiler does not say of 16.00 GiB" in text
    assert "collectives" not in text
    # One second at the peak a step, 3600 steps, 16 chips, at half of the peak.
    assert "32 chip-hours at an assumed 50% of v5e's peak" in text


def test_what_remat_does_twice_is_no_work_of_the_model():
    text = compile_check.as_text(report(matrix_flops=2 * 197e12), 0.5)
    assert "394.00 T a chip and step" in text
    assert "32 chip-hours at an assumed 50% of v5e's peak" in text


def test_the_json_of_a_report():
    fields = {"fits": True, "collectives": {"all-reduce": hlo.Traffic(2, 8)}, "images": None}
    told = json.loads(json.dumps(compile_check.as_json(report(**fields), 0.5)))
    assert told["collectives"] == {"all-reduce": {"count": 2, "bytes": 8}}
    assert told["chip_hours"] is None
    assert told["flops_per_image"] == 197e12 * 16 / 4096


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is missing: pip install 'jax[tpu]'")
def test_a_tiny_step_is_compiled_for_four_chips():
    fields = [f"--config.{field}={value}" for field, value in fields_of("mae").items()]
    command = [sys.executable, "-m", "maskcl_jax.compile_check", "--config=configs/mae.py:synthetic", *fields]
    # The flags of conftest are for the CPU's compiler.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command += ["--topology=v5e:2x2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"]
    assert told["chips"] == 4
    assert told["state_bytes"] == pytest.approx(3 * 4 * told["parameters"], rel=0.01)  # AdamW has two moments
    assert told["collectives"]["all-reduce"]["bytes"] >= 2 * told["parameters"]
    assert told["compiler_flops"] == pytest.approx(
        told["matrix_flops"], rel=0.5
    )  # beside tiny products the rest is much
