"""Whole journeys: train, look, stop, resume, refuse."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import optax
import pytest
from helpers.processes import arguments_of, command, environment
from helpers.tiny import CONFIGS, fields_of, filled, quick, rows, saved_state, tiny

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import Diverged, UserError
from maskcl_jax.methods import METHODS, LossOutput, StepContext
from maskcl_jax.methods import create as create_method
from maskcl_jax.training import checkpoint, logging, loop, optimizer, run_folder, sharding, throughput, train_state
from maskcl_jax.training.step import make_train_step


@pytest.mark.parametrize("name", METHODS)
def test_a_run_leaves_what_it_promises_and_from_a_checkpoint_ends_the_same(name, tmp_path, capsys, monkeypatch):
    closing = loop.train(quick(name), str(tmp_path))
    check_promises(name, tmp_path, closing, capsys.readouterr().out)
    straight, losses = saved_state(tmp_path), losses_of(tmp_path)
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]

    steps = []

    class Noting(throughput.Meter):
        def push(self, step, values):
            steps.append(step)
            return super().push(step, values)

    monkeypatch.setattr(loop.Monitor, "evaluate", lambda self, state: ({}, {}))
    monkeypatch.setattr(throughput, "Meter", Noting)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    assert checkpoint.Checkpoints(tmp_path).latest() == 3
    loop.train(quick(name), str(tmp_path))
    assert steps == [4, 5, 6]
    jax.tree.map(np.testing.assert_array_equal, straight, saved_state(tmp_path))
    assert losses == losses_of(tmp_path)


def losses_of(workdir) -> list[tuple[int, float]]:
    """The steps of the rows and their losses, as they were written."""
    return [(row["step"], row["loss"]) for row in rows(workdir) if "loss" in row]


@pytest.mark.parametrize("fails", ["Writers", "Checkpoints", "Monitor", "opening_line", "open_batches"])
def test_a_run_that_fails_while_it_starts_leaves_nothing_open(fails, tmp_path, monkeypatch):
    """An error keeps its frames alive, and with them everything that is not closed."""
    opened, closed = [], []

    def watch(cls):
        start, close = cls.__init__, cls.close
        monkeypatch.setattr(cls, "__init__", lambda self, *a, **k: (start(self, *a, **k), opened.append(cls))[0])
        monkeypatch.setattr(cls, "close", lambda self: (close(self), closed.append(cls))[0])

    for resource in (run_folder.FileLock, checkpoint.Checkpoints, pipeline.Batches, logging.Writers):
        watch(resource)

    def fail(*_, **__):
        raise RuntimeError("broken off")

    places = {"Writers": logging, "Checkpoints": checkpoint}
    monkeypatch.setattr(places.get(fails, loop), fails, fail)
    with pytest.raises(RuntimeError, match="broken off"):
        loop.train(quick("mae"), str(tmp_path))
    assert run_folder.FileLock in opened
    assert sorted(opened, key=str) == sorted(closed, key=str)


def check_promises(name, workdir, closing, out):
    """What a user finds after a run: words on the screen, metrics, pictures, a checkpoint."""
    assert f"{name}, preset synthetic" in out
    assert "cpu" in out.lower()
    losses = dict(losses_of(workdir))
    if name != "mae":  # it has nothing that can collapse
        assert all(row["feature_std"] > 0 and row["effective_rank"] >= 1 for row in rows(workdir) if "loss" in row)
    knns = {row["step"]: row["knn_accuracy"] for row in rows(workdir) if "knn_accuracy" in row}
    assert sorted(knns) == [0, 6]
    pictures = sorted(path.name for path in (workdir / "pictures").iterdir())
    assert pictures == ["step_00000000.png", "step_00000006.png"]
    assert f"{losses[1]:.4f} -> {losses[6]:.4f}" in closing["loss"]
    assert int(saved_state(workdir).step) == 6
    assert list(workdir.rglob("events.out.tfevents*"))


def test_a_finished_run_is_not_trained_again(tmp_path):
    loop.train(quick("mae"), str(tmp_path))
    before = saved_state(tmp_path)
    closing = loop.train(quick("mae"), str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, before, saved_state(tmp_path))
    assert "loss" in closing


def test_noise_is_that_of_the_step():
    """A step draws other noise than the one before, and the same when it is taken again."""
    method = types.SimpleNamespace(ema_first=False)
    method.loss = lambda params, batch, context: LossOutput(
        params.sum(), {"drawn": jax.random.uniform(context.rng)}, context.model_state
    )
    tx, params = optax.sgd(0.1), jax.numpy.ones(2)
    train_step = make_train_step(method, tx, lambda step: 0.1, seed=0, total_steps=2)
    first = train_state.TrainState(jax.numpy.zeros((), "int32"), params, None, {}, tx.init(params))
    second, before = train_step(first, {})
    assert int(second.step) == 1
    _, after = train_step(second, {})
    _, again = train_step(second, {})
    assert float(before["drawn"]) != float(after["drawn"]) == float(again["drawn"])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(Diverged, match="loss"):
        loop.train(quick("mae", **{"optimizer.base_lr": 1e30, "optimizer.warmup_epochs": 0.0}), str(tmp_path))


GRADIENTS = """
import pathlib, sys
sys.path.insert(0, str(pathlib.Path(sys.argv[1])))
import test_train
for name in sys.argv[3:]:
    test_train.write_one_step(name, pathlib.Path(sys.argv[2]))
"""


def write_one_step(name: str, folder: pathlib.Path) -> None:
    """Loss, gradients, statistics, target and queue of one step on 1 and on 8 devices, one file each."""
    c = quick(name)
    method = create_method(c)
    batch = next(
        pipeline.train_batches(
            open_source(c.data), method.views, data_config=c.data, batch_size=8, seed=0, start_step=0
        )
    )
    tx = optimizer.create(c, lambda step: 0.1)
    method.init = lambda key: filled(create_method(c))
    state = train_state.create(method, tx, jax.random.key(0))

    def loss(state, batch):
        context = StepContext(state.target_params, state.model_state, jax.random.key(1))

        def of_params(params):
            out = method.loss(params, batch, context)
            return out.loss, out.model_state

        return jax.value_and_grad(of_params, has_aux=True)(state.params)

    for devices in (1, 8):
        auto = (sharding.AxisType.Auto,)
        mesh = jax.make_mesh((devices,), (sharding.DATA,), axis_types=auto, devices=jax.devices()[:devices])
        placed = sharding.replicated(mesh)
        step = jax.jit(loss, out_shardings=placed)
        (value, model_state), grads = step(jax.device_put(state, placed), sharding.put(batch, mesh))
        assert len(jax.tree.leaves(grads)[0].sharding.device_set) == devices
        flat, _ = jax.tree_util.tree_flatten_with_path({"loss": value, "grads": grads, "state": model_state})
        leaves = {jax.tree_util.keystr(k): np.asarray(v) for k, v in flat}
        np.savez(folder / f"{name}_{devices}.npz", **leaves)


# One process for several methods: it takes seconds to start.
@pytest.mark.parametrize("names", [list(METHODS)[::2], list(METHODS)[1::2]], ids=["even", "odd"])
def test_one_step_is_the_same_on_1_and_on_8_devices(names, tmp_path):
    here = str(pathlib.Path(__file__).parent)
    subprocess.run([sys.executable, "-c", GRADIENTS, here, str(tmp_path), *names], env=environment(8), check=True)
    for name in names:
        one, eight = (dict(np.load(tmp_path / f"{name}_{devices}.npz")) for devices in (1, 8))
        assert one.keys() == eight.keys()
        for key, value in one.items():
            # Float32 noise grows with an array's scale (gradients reach 7 here, and 0.01): measured by it, as in
            # `verify`.
            noise = 5e-6 + 1e-4 * np.sqrt(np.mean(np.float64(value) ** 2))
            np.testing.assert_allclose(eight[key], value, atol=noise, rtol=0, err_msg=f"{name} {key}")


def test_a_killed_run_held_its_folder_and_ends_as_one_that_was_not(tmp_path):
    overrides = {"total_steps": 12, "log.every_seconds": 0.0, "eval.pictures": 0}
    victim = command(*arguments_of("ccmim", tmp_path / "killed", fields_of("ccmim") | overrides))
    process = subprocess.Popen(victim, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("5/12"):
            with pytest.raises(UserError, match=f"is in use by another run, process {process.pid} on "):
                run_folder.lock_run(tmp_path / "killed")
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    latest = checkpoint.Checkpoints(tmp_path / "killed").latest()
    assert (latest or 0) < 12  # none, where it died before the first one was whole
    again = subprocess.run(victim, env=environment(1), check=True, stdout=subprocess.PIPE, text=True)
    assert latest is None or f"resumed from step {latest}" in again.stdout
    loop.train(tiny("ccmim", **overrides), str(tmp_path / "straight"))
    states = [saved_state(tmp_path / run) for run in ("killed", "straight")]
    assert int(states[0].step) == 12
    jax.tree.map(np.testing.assert_array_equal, *states)


# Runs the training command for each list of words of standard input; answers {"status", "stderr", "written"} of each.
REFUSE = """
import contextlib, io, json, os, sys
from absl import flags
from maskcl_jax import cli, main
answers, before = {}, []
for name, words in json.load(sys.stdin).items():
    flags.FLAGS.unparse_flags()
    sys.argv = ["main", *words]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            status = cli.run(main.main)
        except SystemExit as end:
            status = end.code
    answers[name] = {"status": status, "stderr": stderr.getvalue(), "written": sorted({*os.listdir()} - {*before})}
    before = os.listdir()
print(json.dumps(answers))
"""
# What parsing refuses alone: tests/test_cli.py.
BAD = {
    "unknown field": (["--config={mae}:synthetic", "--config.method.ratio=1"], "--config.method.ratio"),
    "flag": (["--config={mae}:synthetic", "--work=x"], "work"),
    "patch": (["--config={mae}:synthetic", "--config.model.patch_size=5"], "patch_size=5"),
    "no visible patch": (["--config={mae}:synthetic", "--config.method.mask_ratio=0.99"], "mask_ratio=0.99"),
    "no masked patch": (["--config={mae}:synthetic", "--config.method.mask_ratio=0.0"], "mask_ratio=0.0"),
    "batch": (["--config={mae}:synthetic,batch_size=6"], "batch_size=6"),
    "no folder": (["--config={mae}:folder,path=/nowhere/images"], "/nowhere/images"),
    "no tfds": (["--config={mae}:cifar10,data_dir=/nowhere"], "cifar10"),
    "tfds name": (["--config={mae}:cifar10", "--config.data.name=cifar11"], "cifar11"),
    "temperature": (["--config={cmae}:synthetic", "--config.method.temperature=-0.1"], "temperature=-0.1"),
    "momentum": (["--config={mocov3}:synthetic", "--config.method.momentum=1.5"], "momentum=1.5"),
    "queue": (["--config={macrl}:synthetic", "--config.method.queue_size=100"], "queue_size=100"),
    "batch of one": (["--config={mocov3}:synthetic,batch_size=1"], "batch_size=1"),
    "group": (["--config={cmae}:synthetic", "--config.method.bn_group_size=7"], "bn_group_size=7"),
    "shift": (["--config={cmae}:synthetic", "--config.method.pixel_shift=60"], "pixel_shift=60"),
    "boxes": (["--config={maskco}:synthetic", "--config.method.box_side=(0.5, 1.5)"], "box_side=(0.5, 1.5)"),
}


def test_bad_input_is_one_line_and_writes_nothing(tmp_path):
    commands = {name: [a.format(**CONFIGS) for a in arguments] for name, (arguments, _) in BAD.items()}
    done = subprocess.run(
        [sys.executable, "-c", REFUSE],
        input=json.dumps(commands),
        env=environment(4),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    wrong = {}
    for name, (_, culprit) in BAD.items():
        lines = answers[name]["stderr"].strip().splitlines() or [""]
        one_line = lines[-1].startswith("error: ") and culprit in lines[-1] and "Traceback" not in "".join(lines)
        if answers[name]["status"] != 2 or answers[name]["written"] or not one_line:
            wrong[name] = answers[name]
    assert wrong == {}
