"""Studies: what is missing runs, what is done is kept, and what is quoted is what was measured."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.studies import TWO
from helpers.tiny import ROOT

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate.results import unpack_bits
from maskcl_jax.study import (
    Data,
    Entry,
    Evaluation,
    Study,
    definition,
    pieces,
    presets,
    running,
)
from maskcl_jax.study.results import Results, dumps

STAND_IN = (sys.executable, str(ROOT / "tests" / "helpers" / "commands.py"))
RESULTS = sorted((ROOT / "results").glob("*.json"))
# Its runs take a second, so that one can be stopped.
SLOW = dataclasses.replace(TWO, entries=tuple(dataclasses.replace(e, fields={"pause": 0.05}) for e in TWO.entries[:2]))


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(running, "PYTHON", STAND_IN)


def run(workdir, study=TWO, *, hours=0.0, known=()):
    """(exit status, the results, the runner) of a study."""
    results = Results(workdir / "results.json", study, "two", "cpu", known)
    runner = running.Runner(workdir, data="", hours=hours, results=results)
    return runner.run(pieces.pieces_of(study)), results, runner


def starts(workdir, name):
    """The steps from which a run was started."""
    return (workdir / "runs" / f"{name}-s0" / "starts").read_text().split()


def steps(workdir, name):
    """The steps that a run did, in order."""
    lines = (workdir / "runs" / f"{name}-s0" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_study_runs_what_is_missing_and_nothing_twice(tmp_path, stand_in):
    status, results, _ = run(tmp_path)
    assert status == 0
    assert [row["entry"] for row in results.figures] == ["first", "second", "again"]
    assert all(row["value"] == 50.0 and row["figure"] == "k-NN" for row in results.figures)
    assert [(row["entry"], row["images"]) for row in results.runs] == [("first", 160), ("second", 160)]
    assert all(row["command"] and row["date"] for row in results.figures + results.runs)
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]  # fails in a copy that is no repository
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert {row["commit"].rstrip("+") for row in results.figures + results.runs} == {head}
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["comparisons"][0]["difference"] == 0.0
    status, again, _ = run(tmp_path)
    assert status == 0
    assert (again.figures, again.runs) == (content["figures"], content["runs"])
    assert starts(tmp_path, "first") == ["0"]


def test_hours_stop_a_run_that_goes_on_later(tmp_path, stand_in):
    begin = time.monotonic()
    status, results, _ = run(tmp_path, SLOW, hours=0.5 / 3600)
    assert status == 0
    assert time.monotonic() - begin < 30
    assert not results.runs
    assert run(tmp_path, SLOW)[0] == 0
    first = starts(tmp_path, "first")
    assert len(first) == 2
    assert int(first[1]) > 0
    assert steps(tmp_path, "first") == list(range(1, 21))


def test_a_killed_study_leaves_no_run_behind_and_loses_nothing(tmp_path, stand_in):
    code = (
        "import pathlib, test_study as t; from maskcl_jax.study import running; running.PYTHON = t.STAND_IN; "
        f"t.run(pathlib.Path({str(tmp_path)!r}), t.SLOW)"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    metrics = tmp_path / "runs" / "second-s0" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for((tmp_path / "runs" / "second-s0" / "saved").exists)
    assert len(json.loads((tmp_path / "results.json").read_text())["figures"]) == 1
    assert run(tmp_path, SLOW)[0] == 0
    assert starts(tmp_path, "first") == ["0"]
    assert len(starts(tmp_path, "second")) == 2
    assert steps(tmp_path, "second") == list(range(1, 21))


def wait_for(condition, seconds=240.0):
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_finished_figures_come_from_another_machine_or_study(tmp_path, stand_in):
    """The results that the repository keeps count as done where the commands are the same: only what they lack runs."""
    _, results, _ = run(tmp_path / "first")
    content = results.content()
    content["figures"] = content["figures"][1:]
    of_another = Entry("first", "mae:synthetic", {"epochs": 3}), Entry("other", "mae:synthetic")
    other = dataclasses.replace(TWO, entries=of_another, comparisons=())
    _, others, _ = run(tmp_path / "other", other)
    for name, known in (("known", content), ("other", others.content())):
        (tmp_path / f"{name}.json").write_text(dumps(known))
    known = (tmp_path / "other.json", tmp_path / "known.json")
    status, results, _ = run(tmp_path / "second", known=known)
    assert status == 0
    assert len(results.figures) == 3
    assert starts(tmp_path / "second", "first") == ["0"]
    assert not (tmp_path / "second" / "runs" / "second-s0").exists()
    assert [row["entry"] for row in results.runs] == ["first", "second"]


def test_the_order_in_which_pieces_finish_does_not_show(tmp_path, stand_in):
    _, results, _ = run(tmp_path)
    more = [row | {"figure": "another"} for row in results.figures]
    results.add(more, [])
    content = results.content()
    turned = content | {name: content[name][::-1] for name in ("figures", "runs")}
    (tmp_path / "turned.json").write_text(dumps(turned))
    assert Results(tmp_path / "none.json", TWO, "two", "cpu", [tmp_path / "turned.json"]).content() == content


def test_figures_of_commands_that_the_study_no_longer_has_are_left_out(tmp_path, stand_in):
    _, results, _ = run(tmp_path)
    changed = Study("?", "none", entries=(Entry("first", "mae:synthetic", {"epochs": 3}), *TWO.entries[1:]))
    changed = dataclasses.replace(changed, evaluations=TWO.evaluations)
    content = Results(tmp_path / "results.json", changed, "two", "cpu").content()
    assert [row["entry"] for row in content["figures"]] == ["second"]
    assert [row["entry"] for row in content["runs"]] == ["second"]
    assert len(results.content()["figures"]) == 3


@pytest.mark.parametrize(
    ("preset", "field", "change", "left"),
    [
        ("mae:synthetic", "optimizer.base_lr", "mae:synthetic: optimizer.base_lr was 7, is ", ["second"]),
        ("knn", "k", "knn: k was 7, is [20]", []),
        ("mae:synthetic", "epochs", "", ["first", "second", "again"]),  # the study sets it
        ("knn", "temperature", "", ["first", "second", "again"]),  # and this
        ("mae:synthetic", "a_field_that_went", "", ["first", "second", "again"]),
    ],
)
def test_figures_of_other_presets_are_not_those_of_todays(tmp_path, stand_in, capsys, preset, field, change, left):
    study = dataclasses.replace(TWO, fields={"epochs": 3}, evaluations=(Evaluation("knn", {"temperature": 0.1}),))
    _, results, _ = run(tmp_path, study)
    content = results.content()
    assert {row["name"] for row in content["presets"]} == {"mae:synthetic", "ccmim:synthetic", "knn"}
    values = next(row["values"] for row in content["presets"] if row["name"] == preset)
    values[field] = 7
    del values["remat" if preset == "mae:synthetic" else "step"]  # as if the field were new
    before = tmp_path / "before.json"
    before.write_text(dumps(content))
    capsys.readouterr()
    taken = Results(tmp_path / "none.json", study, "two", "cpu", [before])
    assert [row["entry"] for row in taken.figures] == left
    printed = capsys.readouterr().out
    assert printed.count("\n") == bool(change)
    assert change in printed
    if change:
        with pytest.raises(UserError, match=r"before\.json: since its runs began, .*: give another --workdir"):
            Results(before, study, "two", "cpu")


def test_the_recipes_of_an_evaluation_are_those_of_the_entrys_own_encoder():
    wide = Entry("wide", "mae:synthetic", {"model.width": 768, "model.heads": 12})
    for entry, recipe in ((wide, "finetune:mae_b"), (TWO.entries[0], "finetune:small")):
        found = presets.of_run(entry, [Evaluation("lowshot:finetune"), Evaluation("all")])
        assert list(found) == ["mae:synthetic", recipe, "logistic", "lowshot", "knn"]  # the same file every time


def test_what_fails_is_told_and_the_rest_runs(tmp_path, stand_in, capsys):
    entries = (Entry("bad", "mae:synthetic", {"fails": 1}), *TWO.entries)
    study = Study("?", "none", entries=entries, evaluations=TWO.evaluations)
    status, results, runner = run(tmp_path, study)
    assert status == 1
    assert list(runner.failed.values()) == ["error: it fails"]
    assert "error: it fails" in capsys.readouterr().out
    assert {row["entry"] for row in results.figures} == {"first", "second", "again"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_where_each_figure_is_from_and_no_machine(path):
    text = path.read_text()
    assert "/work" not in text
    assert "/tmp" not in text
    content = json.loads(text)
    name, scale = content["study"], content["scale"]
    assert path.stem == f"{name}-{scale}"
    study = definition.load(str(ROOT / "studies" / f"{name}.py"), scale)
    keys = {piece.key for piece in pieces.pieces_of(study)}
    stale = {row["entry"] for row in content["figures"] if row["key"] not in keys}
    assert not stale, f"of these the study has other commands now: {stale}"
    figures = content["figures"]
    assert all(row["command"].startswith("python -m maskcl_jax.") and row["date"] and row["commit"] for row in figures)
    assert {row["name"] for row in content["presets"]} == presets.of_study(study).keys()
    again = Results(pathlib.Path("nowhere"), study, name, scale, [path]).content() | {"presets": content["presets"]}
    assert dumps(again) == text, "written by hand, or before the study was changed: run the study"


def test_a_study_runs_the_real_commands(tmp_path):
    """One step of a tiny MAE, and its k-NN."""
    rng = np.random.default_rng(0)
    splits = {f"{split}_images": rng.integers(0, 256, (32, 16, 16, 3), np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "noise.npz", **splits, train_labels=np.arange(32) % 4, test_labels=np.arange(32) % 4)
    fields = {"data.image_size": (16, 16), "batch_size": 8, "total_steps": 1, "eval.every_epochs": 0}
    fields |= {"model.width": 16, "model.depth": 1, "model.heads": 2, "method.decoder.width": 16, "eval.pictures": 0}
    fields |= {"method.decoder.depth": 1, "log.report": False}
    study = Study(
        "?",
        "none",
        data=Data("noise.npz", train_per_class=8, test_per_class=8),
        fields=fields,
        entries=(Entry("MAE", "mae"),),
        evaluations=(Evaluation("knn", {"k": 20}),),
    )
    results = Results(tmp_path / "study" / "results.json", study, "noise", "cpu")
    runner = running.Runner(tmp_path / "study", data=str(tmp_path), hours=0, results=results)
    assert runner.run(pieces.pieces_of(study)) == 0, runner.failed
    (row,) = results.figures
    assert row["n_test"] == 32
    assert row["value"] == pytest.approx(100 * unpack_bits(row["correct"], 32).mean(), abs=1e-3)
    assert results.runs[0]["images"] == 8
