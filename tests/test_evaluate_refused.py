"""Evaluations that would measure nothing: one line, before anything is computed."""

import numpy as np
import pytest
from helpers.evaluations import EIGHT_PIXELS, opened
from helpers.labeled import EIGHT, SIX, Degenerate
from helpers.untrained import made

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import (
    checks,
    finetune,
    frozen,
    linear,
    session,
)
from maskcl_jax.evaluate.evaluation import evaluate
from maskcl_jax.training import run_folder


@pytest.fixture(scope="module")
def small():
    """A run of 8x8 grey images."""
    return made("mae", **EIGHT_PIXELS)


RUN = {
    "knn": frozen.run_knn,
    "logistic": frozen.run_logistic,
    "linear": linear.run_linear,
    "finetune": finetune.run_finetune,
}


@pytest.mark.parametrize(
    ("protocol", "overrides", "culprit"),
    [
        ("knnn", (), "did you mean 'knn'"),
        ("linear:dino", (), "linear:dino"),
        ("knn", ("kk=3",), "kk"),
        ("knn", ("k=three",), "k=three"),
        ("knn", ("network=teacher",), "network='teacher'"),
        ("knn", ("network=target",), "no EMA target"),
        ("knn", ("feature=clss",), "feature='clss'"),
        ("knn", ("feature=last9",), "last9"),
        ("knn", ("labels=1000",), "labels='1000'"),
        ("knn", ("data.image_size=10x10",), "image_size=10x10"),
        ("knn", ("batch_size=0",), "batch_size=0"),
        ("knn", ("k=0",), "k="),
        ("knn", ("temperature=0",), "temperature"),
        ("logistic", ("C=0",), "C=0"),
        ("linear", ("factors=-1",), "factors"),
        ("finetune", ("pool=max",), "pool='max'"),
        ("segment", (), "no masks"),
        ("all", ("kk=3",), "kk=3 is a field of none"),
    ],
)
def test_what_is_refused_in_one_line(small, tmp_path, protocol, overrides, culprit):
    with pytest.raises(UserError, match=culprit) as error:
        opened(small, protocol, tmp_path, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("protocol", "overrides", "culprit"),
    [
        ("linear", ("holdout=0",), "holdout"),
        ("linear", ("epochs=0",), "epochs=0"),
        ("finetune", ("init=random",), "init='random'"),
        ("finetune", ("feature=mean",), "feature='mean'"),
    ],
)
def test_what_is_refused_before_it_is_computed(small, tmp_path, protocol, overrides, culprit):
    with pytest.raises(UserError, match=culprit):
        RUN[protocol](opened(small, protocol, tmp_path, *overrides))


@pytest.mark.parametrize("protocol", RUN)
@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([1] * 8, SIX, "all 8 labeled train images are of one class"),
        ([-1, 2] * 4, SIX, "all 4 labeled train images are of one class"),
        (EIGHT, [2] * 6, "all 6 labeled test images are of one class"),
        (EIGHT, [-1] * 6, "none of the 6 test images has a label"),
        ([-1] * 8, SIX, "none of the 8 train images has a label"),
        (EIGHT, [], "needs test images"),
        ([], SIX, "needs train images"),
    ],
)
def test_a_split_that_measures_nothing_is_refused(small, tmp_path, monkeypatch, protocol, train, test, words):
    monkeypatch.setattr(session, "open_source", lambda data: Degenerate(train, test))
    with pytest.raises(UserError, match=words) as caught:
        opened(small, protocol, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["knn", "logistic", "linear"])
def test_equal_features_are_refused_before_anything_is_trained(small, tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(session, "open_source", lambda data: Degenerate(EIGHT, SIX, constant=True))
    monkeypatch.setattr(linear, "fit", None)
    options = ("holdout=0.5", "eval_batch_size=8") if protocol == "linear" else ("k=1",) if protocol == "knn" else ()
    s = opened(small, protocol, tmp_path, "feature=pixels", *options)
    with pytest.raises(UserError, match=r"measures nothing on degenerate.*features of all \d t\w+ images are equal"):
        RUN[protocol](s)


def test_what_is_not_finite_or_not_equal():
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert checks.features_problem(rows, "test") == ""
    assert checks.features_problem(rows[:1], "test") == ""
    assert "equal" in checks.features_problem(np.tile(rows[:1], (5, 1)) * (1 + 1e-7), "test")
    assert "not finite" in checks.features_problem(np.where(rows == rows[2, 1], np.nan, rows), "test")
    assert "no test image" in checks.features_problem(rows[:0], "test")


@pytest.mark.parametrize(("labels", "expected"), [(EIGHT, 8), ([0, 1, 2, -1, 1, 2, -1, 1], 6)])
def test_more_neighbors_than_labeled_images_are_refused(small, tmp_path, monkeypatch, labels, expected):
    monkeypatch.setattr(session, "open_source", lambda data: Degenerate(labels, SIX))
    s = opened(small, "knn", tmp_path, "feature=pixels", f"k=1,{expected}")
    assert [entry["k"] for entry in frozen.run_knn(s)["entries"]] == [1, expected]
    s = opened(small, "knn", tmp_path, "feature=pixels", f"k=1,{expected + 1}")
    with pytest.raises(UserError, match=f"k={expected + 1} is larger than the {expected} labeled training images"):
        frozen.run_knn(s)


def test_held_out_images_of_one_class_choose_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "open_source", lambda data: Degenerate(EIGHT, SIX))
    s = opened(small, "linear", tmp_path, "holdout=0.1")
    with pytest.raises(UserError, match=r"holdout=0\.1 chooses nothing: all 1 labeled held-out images"):
        linear.run_linear(s)


def test_data_without_labels_are_refused(small, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="needs labels"):
        opened(small, "knn", tmp_path, f"data.path={tmp_path}", data="folder")


def test_a_run_without_a_checkpoint_is_refused(small, tmp_path):
    run_folder.claim(str(tmp_path), small.config)
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(str(tmp_path), "knn")
