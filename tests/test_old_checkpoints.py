"""A run that was started before the state's layout changed: restored, resumed, exported.

`data/moco_v2_first_layout.tar.xz` was written by such a version: a tiny MoCo v2 of 6 steps that broke off after step 3.
Its checkpoint has the fields step, params, target_params, model_state, target_state, queue and opt_state.
"""

import pathlib
import tarfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.tiny import rows

from maskcl_jax import config as config_lib
from maskcl_jax.interchange.exporting import export_run
from maskcl_jax.training import loop, run_folder
from maskcl_jax.training.run import restore_run

ARCHIVE = pathlib.Path(__file__).parent / "data" / "moco_v2_first_layout.tar.xz"


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "moco_v2"


def counts(stats) -> set[int]:
    """How often the statistics of every BatchNorm have moved."""
    return {int(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(stats) if path[-1].key == "count"}


def test_every_array_is_restored_into_its_new_place(workdir):
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(workdir / "checkpoints" / "3" / "state")
    state = restore_run(str(workdir)).state
    assert int(state.step) == 3
    assert set(state.model_state) == {"batch_stats", "target_batch_stats", "queue"}
    for ours, theirs in (
        (state.params, saved["params"]),
        (state.target_params, saved["target_params"]),
        (state.model_state["batch_stats"], saved["model_state"]["batch_stats"]),
        (state.model_state["target_batch_stats"], saved["target_state"]["batch_stats"]),
        (state.model_state["queue"], saved["queue"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    ours, theirs = (
        {str(leaf.shape): 0 for leaf in jax.tree.leaves(tree)} for tree in (state.opt_state, saved["opt_state"])
    )
    assert ours == theirs
    sums = [
        sorted(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
        for tree in (state.opt_state, saved["opt_state"])
    ]
    assert sums[0] == sums[1] and max(sums[0]) > 0


def test_the_run_is_finished_from_step_3(workdir, capsys, monkeypatch):
    monkeypatch.setattr(loop.Monitor, "evaluate", lambda self, state: ({}, {}))
    before = rows(workdir)
    loop.train(config_lib.unflat(run_folder.read_config(str(workdir))), str(workdir))
    assert "resumed from step 3" in capsys.readouterr().out
    after = rows(workdir)
    assert after[: len(before)] == before  # the first three steps are not trained again
    assert [row["step"] for row in after[len(before) :] if "loss" in row] == [4, 5, 6]
    state = restore_run(str(workdir)).state
    assert int(state.step) == 6
    # Two passes of each encoder a step would show here, and so would statistics that started from their initial values.
    assert counts(state.model_state["batch_stats"]) == counts(state.model_state["target_batch_stats"]) == {6}


def test_its_encoder_is_exported(workdir, tmp_path):
    said = export_run(restore_run(str(workdir)), "torchvision", str(tmp_path / "out"), check=False).readme
    assert said
    assert (tmp_path / "out").is_dir()
