"""k-NN against scikit-learn, and every image counted once."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import knn
from maskcl_jax.training import sharding


def blobs(n, seed, classes=5, width=12):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return (centres[labels] + 1.5 * rng.normal(size=(n, width))).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0)])
@pytest.mark.parametrize("blocks", [(16384, 1024), (64, 17)])
def test_votes_are_scikit_learns(k, temperature, blocks, monkeypatch):
    monkeypatch.setattr(knn, "TRAIN_BLOCK", blocks[0])
    monkeypatch.setattr(knn, "TEST_BLOCK", blocks[1])
    (train, train_labels), (test, _) = blobs(301, 0), blobs(53, 1)
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = theirs.fit(train, train_labels).predict(test)
    got = knn.knn_predict(train, train_labels, test, k=k, temperature=temperature, num_classes=5)
    np.testing.assert_array_equal(got, expected)


def test_more_neighbors_than_images_means_all():
    """scikit-learn's own vote of all ten, and the number that voted is reported."""
    (train, labels), (test, test_labels) = blobs(10, 0), blobs(30, 1)
    theirs = KNeighborsClassifier(
        10, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.5)
    )
    expected = theirs.fit(train, labels).predict(test)
    got = knn.knn_predict(train, labels, test, k=100, temperature=0.5, num_classes=5)
    np.testing.assert_array_equal(got, expected)
    result = knn.knn_accuracy(train, labels, test, test_labels, k=100, temperature=0.5, num_classes=5)
    assert (result["k"], result["accuracy"]) == (10, np.mean(expected == test_labels))


def test_the_interval_is_wilsons():
    low, high = knn.wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_padding_and_unlabeled_images_do_not_count():
    features, labels = blobs(20, 0)
    labels[3] = -1
    images = features[:, None, None, :]

    def batches():
        for start in range(0, 24, 8):
            rows = np.arange(start, start + 8)
            valid = rows < 20
            at = np.minimum(rows, 19)
            yield {"image": images[at], "label": np.where(valid, labels[at], -1), "index": rows, "valid": valid}

    collected = knn.collect_features(lambda image: image[:, 0, 0], batches(), lambda b: b)[:2]
    result = knn.knn_accuracy(*collected, *collected, k=1, temperature=0.07, num_classes=5)
    assert (result["n_train"], result["n_test"], result["accuracy"]) == (19, 19, 1.0)
    _, _, index = knn.collect_features(lambda image: image[:, 0, 0], batches(), lambda b: b)
    assert sorted(index) == [i for i in range(20) if i != 3]


def clusters(train=300, test=90, dim=8, classes=5):
    rng = np.random.default_rng(0)
    centres, labels = rng.normal(size=(classes, dim)), rng.integers(classes, size=train)
    return centres[labels] + 1.5 * rng.normal(size=(train, dim)), labels, rng.normal(size=(test, dim))


@pytest.mark.parametrize("block", [1, 7, 20, 299, 300, 1000])
@pytest.mark.parametrize("test_block", [8, 90])
def test_blocks_do_not_change_the_result(block, test_block):
    train, labels, test = clusters()
    ours = knn.knn_predict(train, labels, test, num_classes=5, block=block, test_block=test_block)
    np.testing.assert_array_equal(ours, knn.knn_predict(train, labels, test, num_classes=5))


def test_one_compilation_for_all_blocks():
    train, labels, test = clusters(train=101, test=33, dim=7)
    before = knn.merge_neighbors_on_one_device._cache_size()
    knn.knn_predict(train, labels, test, num_classes=5, block=25, test_block=10)
    assert knn.merge_neighbors_on_one_device._cache_size() == before + 1


def test_padding_never_votes():
    """All similarities are negative: a zero row of padding, similarity 0, would win if it took part."""
    train, labels, test = -np.eye(3, dtype=np.float32), [1, 2, 2], np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(knn.knn_predict(train, labels, test, k=3, num_classes=3, block=2), [2, 2])


def test_a_near_neighbour_outweighs_two_far_ones_only_at_a_low_temperature():
    train, labels, test = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), [0, 1, 1], np.array([[2.0, 0.0]])
    # e^(1/T) against 2 e^0: equal at T = 1 / ln 2 = 1.4427.
    assert knn.knn_predict(train, labels, test, k=3, temperature=1.40, num_classes=2) == [0]
    assert knn.knn_predict(train, labels, test, k=3, temperature=1.48, num_classes=2) == [1]


def test_a_tiny_temperature_stays_finite():
    train, labels, test = np.eye(3), [2, 1, 0], np.array([[1.0, 0.1, 0.0]])
    assert knn.knn_predict(train, labels, test, k=3, temperature=1e-4, num_classes=3) == [2]


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"k": 0}, "k=0"),
        ({"num_classes": 4}, "num_classes=4"),
        ({"train_features": np.zeros((0, 8)), "train_labels": np.zeros(0, int)}, "0 train"),
        ({"test_features": np.zeros((0, 8))}, "0 test"),
    ],
)
def test_what_cannot_work_is_named(change, culprit):
    train, labels, test = clusters()
    arguments = {"train_features": train, "train_labels": labels, "test_features": test, "num_classes": 5} | change
    with pytest.raises(UserError, match=culprit):
        knn.knn_predict(**arguments)


def test_wilson_is_the_root_of_its_equation():
    for bound in knn.wilson(37, 50):
        assert abs(0.74 - bound) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / 50))


def collect_on_one_of_two(process: str, port: str, out: str) -> None:
    """What each of two processes runs: its half of every batch in, the whole split out."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    mesh = sharding.create_mesh()
    batches = []
    for start in (0, 4):
        index = np.arange(start, start + 4)[2 * int(process) :][:2]
        image = np.ones((2, 2, 2, 3), np.uint8) * index.astype(np.uint8)[:, None, None, None]
        label, valid = np.where(index < 7, index % 3, -1).astype(np.int32), (index < 7) & (index != 2)
        batches.append({"image": image, "label": label, "index": index, "valid": valid})
    replicated = sharding.replicated(mesh)
    feature_fn = jax.jit(lambda images: images[:, 0, 0].astype(jnp.float32), out_shardings=replicated)
    features, labels, index = knn.collect_features(feature_fn, batches, lambda batch: sharding.put(batch, mesh))
    np.savez(out, features=features, labels=labels, index=index)


def test_two_processes_each_see_the_whole_split(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = pathlib.Path(__file__)
    code = f"import sys, {here.stem}; {here.stem}.collect_on_one_of_two(*sys.argv[1:])"
    path = os.pathsep.join([str(here.parent), str(pathlib.Path(knn.__file__).parents[2])])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": path}
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(i), port, str(tmp_path / f"{i}.npz")], env=environment)
        for i in range(2)
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    for i in range(2):
        result = np.load(tmp_path / f"{i}.npz")
        np.testing.assert_array_equal(np.sort(result["index"]), [0, 1, 3, 4, 5, 6])
        np.testing.assert_array_equal(result["labels"], result["index"] % 3)
        np.testing.assert_array_equal(result["features"][:, 0], result["index"])
