"""A method from outside the package, `examples/simmim.py`: trained, resumed, evaluated, exported, on any devices."""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import context_of
from helpers.processes import command, environment
from helpers.tiny import ROOT, filled, rows
from helpers.views import batch_of

from maskcl_jax.config import load
from maskcl_jax.evaluate.evaluation import evaluate
from maskcl_jax.interchange import files
from maskcl_jax.interchange.exporting import export_run
from maskcl_jax.methods import create
from maskcl_jax.ops import masking
from maskcl_jax.training import loop, throughput
from maskcl_jax.training.run import restore_run

SIMMIM = ROOT / "examples" / "simmim.py"
FIELDS = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.patch_size": 4,
    "data.num_examples": 64,
    "batch_size": 8,
    "eval.batch_size": 16,
    "eval.every_epochs": 0.0,
    "total_steps": 4,
    "checkpoint.every_epochs": 0.25,
    "eval.pictures": 2,
    "log.every_steps": 1,
}


def simmim(**overrides):
    config = load(SIMMIM, "synthetic")
    config.update_from_flattened_dict({**FIELDS, **overrides})
    return config


class Counting(throughput.Throughput):
    """Counts the steps of all runs; breaks off a run before one of them."""

    steps, break_at = 0, 0

    def step(self):
        type(self).steps += 1
        if self.steps == self.break_at:
            raise RuntimeError("broken off")
        super().step()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the workdir of a run that broke off in step 4 and was resumed, steps run by each of the two)."""
    workdir, steps = str(tmp_path_factory.mktemp("simmim")), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "Throughput", Counting)
        Counting.break_at = 4
        with pytest.raises(RuntimeError, match="broken off"):
            loop.train(simmim(), workdir)
        steps.append(Counting.steps)
        Counting.steps = Counting.break_at = 0
        loop.train(simmim(), workdir)
        steps.append(Counting.steps)
    return workdir, steps


def test_it_is_at_most_120_lines():
    assert len(SIMMIM.read_text().splitlines()) <= 120


def test_a_run_that_broke_off_is_resumed_and_ends_as_one_that_did_not(finished, tmp_path):
    workdir, steps = finished
    assert steps == [4, 2]  # the checkpoint is of step 2
    loop.train(simmim(), str(tmp_path))
    straight, resumed = (restore_run(str(run)).state for run in (tmp_path, workdir))
    assert int(resumed.step) == 4
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_only_masked_pixels_count_and_the_encoder_does_not_see_them():
    method = create(simmim())
    params, state = filled(method)
    batch = batch_of(method)
    images, mask = method.preprocess(batch["image"]), masking.mask_of(batch["visible"], method.num_patches)
    assert set(np.asarray(mask.sum(axis=1))) == {40.0}  # 10 of 16 squares of 2 x 2 patches: 0.6 of them, rounded up
    hidden = np.asarray(masking.unpatchify(jnp.repeat(mask[:, :, None], 16 * 3, axis=2), 4, (32, 32)))
    predict = jax.jit(method.predict)
    before = predict(params, images, mask)
    np.testing.assert_array_equal(before, predict(params, jnp.where(hidden == 1, 7.0, images), mask))
    error = np.abs(before - masking.patchify(images, 4)).mean(axis=-1)
    loss = jax.jit(lambda params: method.loss(params, batch, context_of(method, params, state)).loss)(params)
    np.testing.assert_allclose(loss, error[np.asarray(mask) == 1].mean(), rtol=1e-5)


def test_it_is_evaluated_and_exported(finished, tmp_path):
    workdir, _ = finished
    (record,) = evaluate(workdir, "knn", overrides=("batch_size=16", "k=4"))
    assert "accuracy" in json.dumps(record)
    run = restore_run(workdir)
    export_run(run, "timm", str(tmp_path / "out"), check=False)
    state, _ = files.read_state(str(tmp_path / "out"))
    kernel = np.asarray(run.state.params["encoder"]["blocks_0"]["mlp"]["fc1"]["kernel"])
    np.testing.assert_array_equal(state["blocks.0.mlp.fc1.weight"], kernel.T)


def test_the_command_on_8_devices_finds_the_losses_of_1_device(finished, tmp_path):
    flags = [
        f"--config.{field}={value}" for field, value in (FIELDS | {"eval.pictures": 0, "log.report": False}).items()
    ]
    eight = command(f"--config={SIMMIM}:synthetic", *flags, f"--workdir={tmp_path}")
    subprocess.run(eight, env=environment(8), cwd=ROOT, check=True)
    losses = [[row["loss"] for row in rows(workdir) if "loss" in row] for workdir in (finished[0], tmp_path)]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
