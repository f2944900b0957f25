"""Facts of the data: what tells one data set from another, so that a run is not resumed on other images."""

import contextlib
import io
import tarfile

import numpy as np
import pytest
from helpers import prepared
from helpers.views import data_config
from PIL import Image

from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.training import checkpoint

pytestmark = pytest.mark.usefixtures("own_cache")


def facts_of(source, **fields):
    return open_source(data_config(source=source, **fields)).facts()


def png(seed) -> bytes:
    """Noise, of another size in bytes for every seed."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 6 + seed % 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def differing(left, right):
    """The names of the facts that two data sets do not share."""
    assert left.keys() == right.keys()
    return {name for name in left if left[name] != right[name]}


def tar(path, images, *, labels=None):
    """A tar file of {name: seed}; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {f"{name}.png": png(seed) for name, seed in images.items()}
    members |= {f"{name}.cls": b"%d" % label for name, label in (labels or {}).items()}
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return str(path)


TEN = {f"{i:03}": i for i in range(10)}


def test_tar_files_of_other_images_are_other_data(tmp_path):
    first = facts_of("tar", path=tar(tmp_path / "a" / "train.tar", TEN))
    assert (first["train"], first["test"], first["classes"]) == (10, 0, 0)
    assert first == facts_of("tar", path=tar(tmp_path / "moved" / "renamed.tar", TEN))
    names = tar(tmp_path / "b" / "train.tar", {f"other{name}": seed for name, seed in TEN.items()})
    assert differing(first, facts_of("tar", path=names)) == {"marks"}
    sizes = tar(tmp_path / "c" / "train.tar", {name: seed + 1 for name, seed in TEN.items()})
    assert differing(first, facts_of("tar", path=sizes)) == {"marks"}
    tested = [
        facts_of("tar", path=str(tmp_path / "a" / "train.tar"), test_path=tar(tmp_path / "t" / f"{i}.tar", images))
        for i, images in enumerate(({"x": 1, "y": 2}, {"x": 1, "z": 2}))
    ]
    assert differing(*tested) == {"test_marks"}


def test_of_labeled_tar_files_the_labels_of_both_splits_are_facts(tmp_path):
    labels = {name: number % 2 for number, name in enumerate(TEN)}
    first = facts_of("tar", path=tar(tmp_path / "a" / "1.tar", TEN, labels=labels))
    assert (first["train"], first["test"], first["classes"]) == (8, 2, 2)
    swapped = {name: 1 - label for name, label in labels.items()}
    other = facts_of("tar", path=tar(tmp_path / "b" / "1.tar", TEN, labels=swapped))
    assert {"digest", "test_digest"} <= differing(first, other)


def npz(path, *, seed, test_seed=0, shift=0):
    rng = np.random.default_rng(seed)
    arrays = {"train_images": rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)}
    arrays["test_images"] = np.random.default_rng(test_seed).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    arrays |= {"train_labels": np.arange(12) % 3, "test_labels": (np.arange(4) + shift) % 3}
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("source", ["npz", "scenes"])
def test_arrays_and_the_parts_of_scenes_are_told_apart_by_pixels_and_labels(tmp_path, source):
    first = facts_of(source, parts="npz", path=npz(tmp_path / "1.npz", seed=1))
    assert (first["train"], first["test"], first["classes"]) == (12, 4, 3)
    for number, (options, fact) in enumerate(
        [
            ({"seed": 2}, {"npz": "pixels", "scenes": "parts_pixels"}),
            ({"seed": 1, "test_seed": 9}, {"npz": "test_pixels", "scenes": "test_parts_pixels"}),
            ({"seed": 1, "shift": 1}, {"npz": "test_digest", "scenes": "test_parts_digest"}),
        ]
    ):
        other = facts_of(source, parts="npz", path=npz(tmp_path / f"other{number}.npz", **options))
        assert differing(first, other) == {fact[source]}
    assert first == facts_of(source, parts="npz", path=npz(tmp_path / "moved.npz", seed=1))


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_tfds_sets_are_told_apart_by_their_records_and_version(tmp_path, cache_mb):
    def facts(folder, *, change="", label=0, **options):
        splits = {"train": [[{"image": png(i), "label": i % 2} for i in range(6)]]}
        splits["test"] = [[{"image": png(7 * i), "label": (i + label) % 2} for i in range(4)]]
        if change:
            splits[change][0][1]["image"] = png(3)[:-12] + bytes(9)  # as long as no other
        prepared.write(tmp_path / folder / "tiny", splits, **options)
        return facts_of("tfds", name="tiny", data_dir=str(tmp_path / folder), cache_mb=cache_mb)

    first = facts("a")
    assert (first["train"], first["test"], first["classes"], first["name"]) == (6, 4, 2, "tiny/1.0.0")
    assert first == facts("moved")
    assert differing(first, facts("b", change="train")) == {"marks"}
    assert differing(first, facts("c", change="test")) == {"test_marks"}
    assert differing(first, facts("d", label=1)) == {"test_digest"}
    assert differing(first, facts("e", version="2.0.0")) == {"name"}


def folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(1))
    return str(root)


def test_the_test_split_of_a_folder_is_a_fact(tmp_path):
    path = folder(tmp_path / "train", "a/1.png", "a/2.png", "b/3.png")
    first = facts_of("folder", path=path, test_path=folder(tmp_path / "1", "a/4.png", "b/5.png"))
    moved = facts_of("folder", path=path, test_path=folder(tmp_path / "2", "a/4.png", "b/5.png"))
    assert first == moved and (first["train"], first["test"]) == (3, 2)
    for number, names in enumerate([("a/4.png", "b/6.png"), ("b/4.png", "b/5.png")]):
        other = facts_of("folder", path=path, test_path=folder(tmp_path / f"other{number}", *names))
        assert differing(first, other) == {"test_digest"}


def kept(folder, facts) -> checkpoint.Checkpoints:
    """The checkpoints of a run on data of these facts."""
    checkpoints = checkpoint.Checkpoints(folder)
    checkpoints.save(1, {"step": np.ones(1)}, data=facts)
    checkpoints.manager.wait_until_finished()
    return checkpoints


def test_a_run_of_an_earlier_version_resumes_by_the_facts_that_it_has(tmp_path):
    """It kept the labels, the names of files and the number of test images only."""
    now = facts_of("tar", path=tar(tmp_path / "train.tar", TEN))
    old = {name: now[name] for name in ("train", "test", "classes", "digest")}
    with contextlib.closing(kept(tmp_path / "old", old)) as checkpoints:
        checkpoints.check_data(now, accept=False)
        with pytest.raises(UserError, match="started on other data"):
            checkpoints.check_data(now | {"train": 9}, accept=False)
    other = facts_of("tar", path=tar(tmp_path / "other.tar", {f"x{name}": seed for name, seed in TEN.items()}))
    with (
        contextlib.closing(kept(tmp_path / "new", now)) as checkpoints,
        pytest.raises(UserError, match=r"as many \(10 training and 0 test images, 0 classes\)"),
    ):
        checkpoints.check_data(other, accept=False)


def test_the_digests_of_an_earlier_version_are_those_of_this_one(tmp_path):
    """Else every run that was started before would be refused."""
    names = facts_of("folder", path=folder(tmp_path, "a/1.png", "a/2.png", "b/3.png", "b/4.png"))
    assert names["digest"] == "f76f8c48764e8f6f4c1d56762b8c11b5"
    pixels = facts_of("npz", path=npz(tmp_path / "1.npz", seed=1))
    want = ("d04df15340b3e0829055ba7f6af99576", "a258f1cd737701be6c3f11fe05919264")
    assert (pixels["digest"], pixels["pixels"]) == want
