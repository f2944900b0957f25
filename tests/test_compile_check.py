"""Compiling for TPUs without having them: FLOPs, collectives, the largest batch, what is refused."""

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
from helpers.processes import environment
from helpers.tiny import ROOT, fields_of, tiny
from helpers.views import batch_of

from maskcl_jax import compile_check
from maskcl_jax.errors import UserError
from maskcl_jax.methods import METHODS, create
from maskcl_jax.performance import devices
from maskcl_jax.performance.compiled import Traffic, array_bytes, bytes_accessed, count_collectives
from maskcl_jax.training import sharding
from maskcl_jax.views.base import batch_shapes

# As libtpu writes it: a loop with one gather that is in two fusions, a fused reduce-scatter, an asynchronous pair.
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

%body (tuple.1: (s32[], bf16[256,512], /*index=2*/bf16[1])) -> (s32[], bf16[256,512], /*index=2*/bf16[1]) {
  %fusion.1 = bf16[1,512,512]{2,1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %fusion.2 = bf16[1,512,512]{2,1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %fusion.3 = bf16[64,512]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
}

ENTRY %main (param.4: f32[6,512]) -> f32[] {
  %while.1 = (s32[], bf16[256,512]) while(%tuple), condition=%condition, body=%body
  %all-reduce.2 = (f32[64]{0}, bf16[8,4]{1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %all-reduce.3 = f32[2]{0} all-reduce(%d), to_apply=%add
  %all-reduce.4 = f32[2]{0} all-reduce(%e), to_apply=%add
  %permute.1 = (f32[10]{0}, f32[10]{0}) collective-permute-start(%c), channel_id=2, source_target_pairs={{0,1}}
  %permute.2 = f32[10]{0} collective-permute-done(%permute.1)
  ROOT %result = f32[] constant(0)
}
"""


def test_collectives_of_a_tpu_program():
    assert count_collectives(PROGRAM) == {
        "all-gather": Traffic(1, 512 * 512 * 2),
        "all-reduce": Traffic(3, 64 * 4 + 32 * 2 + 2 * 8),
        "collective-permute": Traffic(1, 40),
        "reduce-scatter": Traffic(1, 256 * 512 * 2),
    }
    assert count_collectives("") == {}


COLLECTIVE = """
import jax, jax.numpy as jnp, json
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from maskcl_jax.performance.compiled import count_collectives
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
def text(function, *arguments, out):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape, place in arguments]
    return jax.jit(function, out_shardings=out).lower(*shapes).compile().as_text()
gradient = jax.grad(lambda w, x: jnp.sum((x @ w) ** 2))
programs = {
    "gradient": text(gradient, ((16, 32), whole), ((8, 16), split), out=whole),
    "gather": text(lambda x: x + 1, ((8, 16), split), out=whole),
    "nothing": text(lambda x: x + 1, ((8, 16), split), out=split),
}
counted = {name: count_collectives(program) for name, program in programs.items()}
print(json.dumps({name: {kind: [t.count, t.bytes] for kind, t in found.items()} for name, found in counted.items()}))
"""


def test_collectives_of_programs_that_xla_compiles_here():
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIVE], env=environment(4), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "gradient": {"all-reduce": [1, 4 * 16 * 32]},
        "gather": {"all-gather": [1, 4 * 8 * 16]},
        "nothing": {},
    }


SPLIT = """
import jax
from helpers.tiny import tiny
from maskcl_jax.methods import create
from maskcl_jax.performance import compiled, flops
from maskcl_jax.training import sharding
from maskcl_jax.training.step import Program
fields = {"batch_size": 16, "kernels": "plain", "method.bn_group_size": 4, "method.shuffle_bn": True}
c = tiny("moco_v2", **fields)
mesh = sharding.create_mesh()
program = Program.from_config(c, mesh, create(c, mesh), 100)
traced = program.trace()
whole = flops.matrix_flops(traced.jaxpr)
print(mesh.size * compiled.compiler_flops(traced.lower().compile()) / whole)
"""


def test_shuffled_keys_are_computed_once_not_on_every_device():
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    env = environment(4) | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SPLIT], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Beside the matrix products XLA counts all the rest; keys computed four times would make it 2.
    assert float(done.stdout) < 1.4


@pytest.mark.parametrize(
    ("shape", "size"), [("f32[]", 4), ("(pred[3]{0}, s8[2,2])", 7), ("bf16[4,0]", 0), ("s4[4]", 2), ("token[]", 0)]
)
def test_bytes_of_a_shape(shape, size):
    assert array_bytes(shape) == size


@pytest.mark.parametrize("name", sorted(METHODS))
def test_batch_shapes_are_those_of_a_batch(name):
    method = create(tiny(name))
    described = batch_shapes(method.views, 8, method.config.data.channels)
    assert described.pop("label") == ((8,), "int32")
    assert described.pop("index") == ((8,), "int64")
    assert described == {key: (value.shape, str(value.dtype)) for key, value in batch_of(method).items()}


def test_the_tables_fit_together():
    names = [chip.name for chip in devices.CHIPS]
    assert len(set(names)) == len(names)
    for generation, shapes in compile_check.TOPOLOGIES.items():
        chip = compile_check.chip_in(f"{generation}:{shapes[0]}")
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
    chip = devices.find_chip(kind)
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
        compile_check.topology_devices(topology)


def test_without_libtpu_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu.* pip install 'jax\[tpu\]'$"):
        compile_check.topology_devices("v5e:4x4")


def test_a_batch_that_the_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(sharding, "create_mesh", lambda *_: types.SimpleNamespace(shape={"data": 2}, size=2))
    with pytest.raises(UserError, match="batch_size=9"):
        compile_check.create_program(tiny("mae", batch_size=9), jax.devices())


def report(**fields):
    known = {
        "method": "mae",
        "preset": "imagenet",
        "topology": "v5e:4x4",
        "chips": 16,
        "batch_size": 4096,
        "remat": "none",
        "fits": False,
        "parameters": 10**8,
        "state_bytes": 2**30,
        "peak_bytes": None,
        "usable_bytes": 2**34,
        "matrix_flops": 197e12,
        "model_flops": 197e12,
        "compiler_flops": None,
        "bytes_accessed": None,
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


@pytest.mark.parametrize(
    ("matrix", "accessed", "bound"),
    [
        (197e12, 819e9 / 2, (1.0, 0.5, 1.0)),
        (197e12, 819e9 * 2, (1.0, 2.0, 0.5)),
        (197e12 * 2, 819e9, (2.0, 1.0, 0.5)),  # remat: the model has half of the FLOPs
    ],
)
def test_the_bound_is_the_longer_of_flops_and_bytes(matrix, accessed, bound):
    step = report(fits=True, matrix_flops=matrix, bytes_accessed=accessed)
    assert step.bound == pytest.approx(bound)
    speed = f"{256 / max(bound[:2]):,.0f} images/s a chip"
    assert f"at best {bound[2]:.0%} MFU, {speed}" in compile_check.as_text(step, 0.5)
    assert compile_check.as_json(step, 0.5)["bound"]["mfu"] == pytest.approx(bound[2])
    assert report().bound is None


def test_the_bytes_of_a_program_are_those_of_its_arrays():
    add = jax.jit(lambda x, y: x + y)
    shape = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    assert bytes_accessed(add.lower(shape, shape).compile()) == 3 * 4 * 256 * 128


def test_the_json_of_a_report():
    fields = {"fits": True, "collectives": {"all-reduce": Traffic(2, 8)}, "images": None}
    result = json.loads(json.dumps(compile_check.as_json(report(**fields), 0.5)))
    assert result["collectives"] == {"all-reduce": {"count": 2, "bytes": 8}}
    assert result["chip_hours"] is None
    assert result["flops_per_image"] == 197e12 * 16 / 4096


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is missing: pip install 'jax[tpu]'")
def test_a_tiny_step_is_compiled_for_four_chips():
    fields = [f"--config.{field}={value}" for field, value in fields_of("mae").items()]
    command = [sys.executable, "-m", "maskcl_jax.compile_check", "--config=configs/mae.py:synthetic", *fields]
    # The flags of conftest are for the CPU's compiler.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command += ["--topology=v5e:2x2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["fits"]
    assert result["chips"] == 4
    assert result["state_bytes"] == pytest.approx(3 * 4 * result["parameters"], rel=0.01)  # AdamW has two moments
    assert result["collectives"]["all-reduce"]["bytes"] >= 2 * result["parameters"]
    # Beside the matrix products XLA counts all the rest, of a tiny model a good part.
    assert 1.0 < result["compiler_flops"] / result["matrix_flops"] < 2.0
    assert result["bytes_accessed"] > result["state_bytes"]
    assert 0.0 < result["bound"]["mfu"] < 1.0
