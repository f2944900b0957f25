"""The benchmark: what it counts, its synthetic batch, what it refuses. Never how fast something is."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.processes import environment
from helpers.tiny import CONFIGS, ROOT, tiny
from PIL import Image

from maskcl_jax.benchmark import jpegs, modes, startup
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create
from maskcl_jax.performance import devices, flops
from maskcl_jax.training import sharding
from maskcl_jax.training.step import Program
from maskcl_jax.views.base import batch_shapes

FEW = modes.Timer(steps=3, warmup=1)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_synthetic_batch_has_the_shapes_of_the_method(name):
    c = tiny(name)
    method = create(c)
    batch = modes.synthetic_batch(c, method)
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == batch_shapes(
        method.views, c.batch_size, c.data.channels
    )


def test_larger_batches_repeat_what_was_drawn(monkeypatch):
    monkeypatch.setattr(modes, "MAX_DRAWN", 3)
    c = tiny("mae", batch_size=8)
    image = modes.synthetic_batch(c, create(c))["image"]
    assert len(image) == 8
    np.testing.assert_array_equal(image[3:6], image[:3])
    assert (image[0] != image[1]).any()


def mae_step_flops(c) -> float:
    """FLOPs of a training step of MAE, in closed form: 2 per multiply-add, a backward pass of two forward passes."""
    patches = (c.data.image_size[0] // c.model.patch_size) * (c.data.image_size[1] // c.model.patch_size)
    visible = int(patches * (1 - c.method.mask_ratio))
    masked, pixels = patches - visible, c.model.patch_size**2 * c.data.channels
    width, depth = c.model.width, c.model.depth
    decoder_width, decoder_depth = c.method.decoder.width, c.method.decoder.depth

    def block(tokens: int, width: int, queries: int) -> int:
        """qkv of all tokens; scores, mixing, projection and an MLP of four times the width for the queries."""
        return 3 * tokens * width**2 + 2 * queries * tokens * width + 9 * queries * width**2

    embedding = visible * pixels * width
    forward = (
        embedding
        + depth * block(visible + 1, width, visible + 1)
        + (visible + 1) * width * decoder_width
        + (decoder_depth - 1) * block(patches + 1, decoder_width, patches + 1)
        + block(patches + 1, decoder_width, masked)  # the last block predicts the masked patches only
        + masked * decoder_width * pixels
    )
    # Images have no gradient, so the patch embedding has no second product in the backward pass.
    return 2.0 * c.batch_size * (3 * forward - embedding)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_the_flops_of_a_mae_step_are_those_of_the_closed_form(kernels):
    c = tiny("mae", kernels=kernels, **{"model.depth": 3, "method.decoder.depth": 3})
    program = Program.from_config(c, sharding.create_mesh(c.mesh), create(c), 1000)
    assert program.model_flops() == mae_step_flops(c)


def test_a_step_is_timed_and_its_work_counted():
    c = tiny("mae")
    report = modes.step(c, FEW)
    assert report.steps == 3
    assert report.seconds_low <= report.seconds_a_step <= report.seconds_high
    assert report.model_flops_a_step == mae_step_flops(c)
    # Beside the matrix products XLA counts all the rest, of a tiny model a good part.
    assert 1.0 < report.compiler_flops_a_step / report.model_flops_a_step < 2.0
    assert report.mfu is None
    assert report.images_per_second_per_device == pytest.approx(report.images_per_second / jax.device_count())
    text = modes.as_text(report)
    assert "unknown: no peak of this chip is known" in text


def test_mfu_is_the_models_flops_over_the_peak(monkeypatch):
    monkeypatch.setattr(devices, "peak_flops", lambda: 100.0)
    times = np.array([1.0, 3.0])
    assert modes.usage({"model_flops_a_step": 50.0}, times) == {"mfu": 0.25}


@pytest.mark.parametrize("mode", ["step", "end_to_end"])
def test_steps_are_timed_and_memory_that_the_device_counts_wins_over_the_compilers(mode, monkeypatch):
    monkeypatch.setattr(devices, "peak_memory", lambda: 7 * 2**30)
    report = getattr(modes, mode)(tiny("mae"), FEW)
    assert report.peak_bytes == 7 * 2**30
    assert "7.00 GiB a device at the peak" in modes.as_text(report)
    assert report.images_per_second > 0
    assert (report.data_wait is None) if mode == "step" else (0 <= report.data_wait <= 1)


def test_what_remat_computes_twice_is_no_work_of_the_model():
    c = tiny("mae", remat="blocks", kernels="plain")
    program = Program.from_config(c, sharding.create_mesh(), create(c), 1000)
    assert program.model_flops() == mae_step_flops(c)
    assert flops.matrix_flops(program.trace().jaxpr) > program.model_flops()


@pytest.mark.parametrize("mode", ["host", "evaluate"])
def test_the_other_modes(mode):
    report = getattr(modes, mode)(tiny("mae"), FEW)
    assert report.images_per_second > 0
    if mode == "host":
        assert report.images_per_cpu_second > 0
    else:
        assert 0 <= report.data_wait <= 1


def test_a_start_is_timed_by_phase_and_the_second_finds_compiled_programs():
    first, again = startup.both(tiny("mae"))
    assert list(first) == list(again)
    assert all(phase.wall >= 0 and phase.cpu >= 0 for phase in first.values())
    assert again["compiling the step"].cpu < first["compiling the step"].cpu
    assert "again" in startup.as_text(first, again)


def test_jpegs_are_as_large_as_photographs(tmp_path):
    jpegs.write(str(tmp_path), 2)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 2
    for file in files:
        assert 80_000 < file.stat().st_size < 150_000
        with Image.open(file) as image:
            assert image.size == (500, 375)
    assert files[0].read_bytes() != files[1].read_bytes()


def test_fewer_jpegs_than_a_batch_are_refused(tmp_path):
    with pytest.raises(UserError, match="--jpegs=4 is less than batch_size=8"):
        modes.with_jpegs(tiny("mae", batch_size=8), str(tmp_path), 4)


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("tensorflow", "tensorflow_datasets"), None))
sys.path.insert(0, "tests")
from helpers.tiny import fields_of
from maskcl_jax import cli
from maskcl_jax.benchmark import __main__ as benchmark
folder = sys.argv.pop()
try:
    cli.run(benchmark.main)
except SystemExit as error:
    assert error.code == 2
values = [f"--config.{k}={v}" for k, v in fields_of("mae").items()]
values += [f"--profile={folder}/trace", f"--config.compile_cache={folder}/compiled"]
sys.argv += ["--config=configs/mae.py:synthetic", "--steps=2", "--warmup=1", "--json", *values]
cli.run(benchmark.main)
"""


def test_the_command_asks_for_a_config_and_writes_json_without_tensorflow_a_trace_and_what_it_compiled(tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(1), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: --config is missing: give one of configs/")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["mode"] == "step" and result["method"] == "mae"
    assert result["images_per_second"] > 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert list((tmp_path / "compiled").glob("jit_train_step*"))
