"""The protocols against scikit-learn, every image counted once, interruption, and what is refused."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.evaluations import EIGHT_PIXELS, opened
from helpers.labeled import EIGHT, SIX, Degenerate
from helpers.processes import environment
from helpers.tiny import ROOT
from helpers.untrained import made, save_run
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from maskcl_jax.data.sources import Arrays, Source
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import (
    features,
    fit,
    frozen,
    knn,
    linear,
    results,
    session,
    settings,
    subsets,
)
from maskcl_jax.evaluate.evaluation import evaluate
from maskcl_jax.training import checkpoint, monitor, sharding
from maskcl_jax.training.throughput import Throughput

LIGHT = ("batch_size=16",)


class Blobs(Source):
    """Three overlapping classes of noisy 8x8 images: no classifier is right everywhere."""

    num_classes, description, class_names = 3, "blobs, of noise", ("a", "b", "c")

    def num_examples(self, split):
        return {"train": 1503, "test": 2003}[split]

    def load(self, split):
        count = self.num_examples(split)
        rng = np.random.default_rng(count)
        labels = rng.integers(3, size=count).astype(np.int32)
        centres = np.random.default_rng(0).normal(128, 5, size=(3, 8, 8, 1))
        noise = rng.normal(0, 30, size=(count, 8, 8, 1))
        return Arrays(np.clip(centres[labels] + noise, 0, 255).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def small():
    """A run of 8x8 grey images."""
    return made("mae", **EIGHT_PIXELS)


@pytest.fixture(scope="module")
def workdir(small, tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("run") / "mae"
    save_run(folder, small)
    return folder


@pytest.fixture
def blobs(monkeypatch):
    """All data are `Blobs`."""
    monkeypatch.setattr(session, "open_source", lambda data: Blobs())


def test_knn_counts_what_scikit_learn_counts(small, blobs, tmp_path):
    s = opened(small, "knn", tmp_path, "feature=pixels", "k=5,20", "batch_size=501")
    train, labels, _ = s.features("train")
    test, test_labels, _ = s.features("test")
    s.cache.clear()
    for entry in frozen.run_knn(s)["entries"]:
        weights = {"weights": lambda distance: np.exp((1 - distance) / 0.07)}
        theirs = KNeighborsClassifier(entry["k"], metric="cosine", algorithm="brute", **weights).fit(train, labels)
        assert entry["accuracy"] == theirs.score(test, test_labels)
        assert (entry["n_train"], entry["n_test"]) == (1503, 2003)


def test_neighbors_may_come_in_any_pieces(small):
    rng = np.random.default_rng(0)
    train, labels, test = rng.normal(size=(83, 6)), rng.integers(4, size=83), rng.normal(size=(31, 6))
    whole = knn.knn_predict(train, labels, test, k=7, num_classes=4)
    pieces = knn.Neighbors(test, k=7, block=16, rows=10)
    for start, stop in ((0, 5), (5, 40), (40, 83)):
        pieces.add(train[start:stop], labels[start:stop])
    np.testing.assert_array_equal(pieces.classify(temperature=0.07, num_classes=4), whole)


def test_the_linear_head_finds_scikit_learns_optimum(small, blobs, tmp_path):
    s = opened(
        small,
        "linear",
        tmp_path,
        *("feature=pixels", "batch_size=451", "eval_batch_size=501", "total_steps=90", "checkpoint_every_epochs=0"),
        *("augment.crop_scale=1,1", "augment.crop_ratio=1,1", "augment.flip=false", "factors=0.00001,3"),
    )
    entry = linear.run_linear(s)["entries"][0]
    assert entry["base_lr"] == pytest.approx(0.3)  # chosen on what was held out
    kept, held = subsets.held_out(1503, 0.1, seed=0)
    assert entry["n_train"] == len(kept) == 1353
    assert not set(kept) & set(held)
    train, labels, _ = s.features("train")
    test, test_labels, _ = s.features("test")
    train, labels = train[kept], labels[kept]
    mean, std = train.mean(axis=0), train.std(axis=0)
    theirs = LogisticRegression(C=1e6, max_iter=1000).fit((train - mean) / std, labels)
    assert abs(entry["accuracy"] - theirs.score((test - mean) / std, test_labels)) <= 0.002
    assert 0.5 < entry["accuracy"] < 0.95
    assert entry["n_test"] == 2003


def on_devices(workdir: str, out: str) -> list[dict]:
    """Entries of a k-NN and a linear evaluation; the training images' embeddings in a file."""
    overrides = ("batch_size=16", "data.num_examples=61")
    found = evaluate(workdir, "knn", overrides=overrides)
    if jax.device_count() > 1:
        short = ("eval_batch_size=8", "total_steps=2", "factors=1", "holdout=0")
        found += evaluate(workdir, "linear", overrides=(*overrides, *short))
    evaluate(workdir, "features", overrides=(*overrides, "split=train", f"out={out}", "pictures=0"))
    return [content["values"]["entries"][0] for content in found]


# Evaluates on eight devices, and then runs a command that is wrong.
ON_EIGHT = """
import json, runpy, sys
import test_evaluate
workdir, out = sys.argv[1:]
print(json.dumps(test_evaluate.on_devices(workdir, out)))
sys.argv[1:] = [f"--workdir={workdir}", "--protocol=finetune:huge"]
runpy.run_module("maskcl_jax.evaluate", run_name="__main__")
"""


def test_every_image_once_on_one_device_and_on_eight_and_the_command_tells_an_error_in_one_line(workdir, tmp_path):
    """61 images to train on and 15 to test: 16 and 8 at once, and 8 devices, divide neither."""
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT, str(workdir), str(tmp_path / "8.npz")],
        env=environment(8) | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --protocol=finetune:huge")
    on_eight = json.loads(done.stdout.splitlines()[-1])
    on_one = on_devices(str(workdir), str(tmp_path / "1.npz"))
    one, eight = (np.load(tmp_path / f"{devices}.npz") for devices in ("1", "8"))
    for saved in (one, eight):
        np.testing.assert_array_equal(np.sort(saved["index"]), np.arange(61))
    order = np.argsort(one["index"]), np.argsort(eight["index"])
    np.testing.assert_allclose(one["features"][order[0]], eight["features"][order[1]], atol=1e-5)
    np.testing.assert_array_equal(one["labels"][order[0]], eight["labels"][order[1]])
    assert on_one[0] == on_eight[0]
    assert [entry["n_test"] for entry in on_one + on_eight] == [15] * 3


def test_features_go_on_where_they_broke_off(small, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 1)
    computed, whole = [], knn.feature_batches

    def counted(compute, batches, put, **options):
        computed.append(1)
        if len(computed) == 3:
            raise OSError
        return whole(compute, batches, put, **options)

    monkeypatch.setattr(knn, "feature_batches", counted)
    out = f"out={tmp_path}/embedded.npz"
    s = opened(small, "features", tmp_path, "batch_size=16", "split=train", out, "pictures=2", "neighbors=3")
    with pytest.raises(OSError):
        features.run_features(s)
    features.run_features(s)
    assert len(computed) == 3 + 2  # of four batches two were done
    saved = np.load(tmp_path / "embedded.npz")
    np.testing.assert_array_equal(np.sort(saved["index"]), np.arange(61))
    assert saved["names"][0] == "example 0"
    again = np.concatenate([row[0] for row in whole(s.feature_fn(), s.batches("train", 16), s.put, keep="valid")])
    np.testing.assert_allclose(saved["features"], again, atol=1e-6)
    assert not list(tmp_path.glob("*.parts"))
    for picture in ("neighbors", "attention"):
        assert (tmp_path / f"embedded-{picture}.png").stat().st_size > 100
    other = opened(small, "features", tmp_path, "batch_size=16", "split=train", out, "network=random")
    with pytest.raises(UserError, match=r"another run.*network"):
        features.run_features(other)


def test_an_interrupted_linear_evaluation_goes_on_where_it_stopped(small, blobs, tmp_path, monkeypatch):
    """Six steps in all; the interrupted one does three, then three more, and ends with the same state."""
    overrides = ("feature=pixels", "batch_size=128", "eval_batch_size=501", "total_steps=6", "factors=1", "holdout=0")
    put, trained = sharding.put, []

    def counted(batch, mesh):
        if "valid" not in batch:  # a batch to train on
            trained.append(1)
            if interrupt and len(trained) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        return put(batch, mesh)

    monkeypatch.setattr(fit.sharding, "put", counted)
    interrupt = False
    straight = opened(small, "linear", tmp_path / "straight", *overrides)
    expected = linear.run_linear(straight)
    assert len(trained) == 6
    trained.clear()
    interrupt = True
    broken = opened(small, "linear", tmp_path / "broken", *overrides)
    with pytest.raises(SystemExit):
        linear.run_linear(broken)
    assert len(trained) == 3
    trained.clear()
    interrupt = False
    assert linear.run_linear(broken) == expected
    assert len(trained) == 3
    trained.clear()
    assert linear.run_linear(broken) == expected
    assert not trained  # nothing is left to train
    saved = [checkpoint.Checkpoints(str(s.folder / s.name)) for s in (straight, broken)]
    assert [c.latest() for c in saved] == [6, 6]
    first, second = (jax.tree.leaves(dict(c.manager.restore(6)["state"])) for c in saved)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_result_says_of_itself(workdir):
    (record,) = evaluate(str(workdir), "lowshot", overrides=("labels=2", *LIGHT), command="as it was written")
    (stored,) = (r for r in results.read_all(str(workdir)) if r["protocol"] == "lowshot")
    assert stored == json.loads(json.dumps(record))
    assert stored["values"]["entries"][0]["n_train"] == 2 * 8
    assert {"network", "feature", "step", "data", "versions", "command", "settings"} <= stored.keys()
    listed = json.loads((workdir / "evaluate" / "labels-2-seed0.json").read_text())
    assert len(listed["indices"]) == 16
    assert "lowshot" in results.table([record])


def test_several_protocols_or_labels_are_several_evaluations(small):
    def asked(protocol, *overrides):
        made_of = settings.create(protocol, small.config, overrides=overrides)
        return [(s.protocol, s.recipe, s.labels) for s in made_of]

    assert asked("lowshot:finetune") == [("finetune", "small", "1%"), ("finetune", "small", "10%")]
    shots = [("lowshot", "", "5"), ("lowshot", "", "1%")]
    assert asked("all", "labels=5,1%") == [("logistic", "", "all"), *shots, ("knn", "", "all")]
    names = {settings.name_of(s, 7) for s in settings.create("lowshot", small.config)}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("source", "problem", "k"),
    [
        (Degenerate([1] * 8, SIX), "all 8 labeled train images are of one class", 20),
        (Degenerate(EIGHT, [2] * 6), "all 6 labeled test images are of one class", 20),
        (Degenerate(EIGHT, []), "there are no test images", 20),
        (Degenerate(EIGHT, SIX, constant=True), "", 8),
        (Degenerate(EIGHT, SIX), "", 8),
    ],
)
def test_a_run_says_what_its_online_evaluation_is_worth_and_goes_on(small, tmp_path, source, problem, k):
    """Each thing is said once; the closing table names the k that voted, and nothing that is not there."""
    said = []
    where = {"source": source, "method": small.method, "mesh": sharding.create_mesh()}
    online = monitor.Monitor(small.config, str(tmp_path), **where, say=said.append)
    scalars = [online.classify(small.state) for _ in range(2)]
    assert bool(scalars[1]) == (not problem)
    assert problem in online.problem
    assert len(said) == len(set(said))
    expected = [problem] if problem else ["k=20 is larger than the 8 labeled training images"]
    expected += ["features of all 8 train images are equal"] if source.constant else []
    assert all(any(words in line for line in said) for words in expected)
    assert len(said) == len(expected) + source.constant  # of the test images, too
    rows = monitor.closing_rows(small.config, str(tmp_path), rate=Throughput(8), skipped=0, monitor=online)
    assert problem in rows["k-NN"]
    assert online.k == k
    assert not {"pictures", "curves"} & rows.keys()


def test_the_fraction_of_unlabeled_images_is_said_and_recorded(small, workdir, monkeypatch, capsys):
    monkeypatch.setattr(session, "open_source", lambda data: Degenerate(EIGHT, [*SIX, -1, -1]))
    (record,) = evaluate(str(workdir), "knn", overrides=("feature=pixels", "k=1"))
    (entry,) = record["values"]["entries"]
    assert (entry["unlabeled_test"], entry["n_test"], "unlabeled_train" in entry) == (0.25, 6, False)
    assert "25.0% of the test images have no label" in capsys.readouterr().out
    assert "unlabeled_test 0.25" in results.table([record])
