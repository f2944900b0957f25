"""Folders and lists: what is used, what is left out and said, what is refused."""

import os

import numpy as np
import pytest
from helpers.folders import names, opened, refuse, write
from helpers.views import data_config, view_of

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source

pytestmark = pytest.mark.usefixtures("own_cache")


CATS_AND_DOGS = ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")


def test_splits_in_the_place_of_classes_are_refused(tmp_path):
    write(tmp_path, *(f"{split}/{file}" for split in ("train", "val") for file in CATS_AND_DOGS))
    refuse(f"has 'train' and 'val', .* set data.path={tmp_path}/train and data.test_path={tmp_path}/val$", tmp_path)
    refuse(f"set data.path={tmp_path}/train$", tmp_path, test_path=str(tmp_path / "val"))
    source = opened(tmp_path / "train", test_path=str(tmp_path / "val"))
    assert (source.class_names, source.num_examples("train"), source.num_examples("test")) == (("cat", "dog"), 4, 4)
    refuse(f"data.test_path='{tmp_path}' has .* set data.test_path={tmp_path}/val$", tmp_path / "train",
           test_path=str(tmp_path))  # fmt: skip
    write(tmp_path / "alone", *(f"Train/{file}" for file in CATS_AND_DOGS))
    refuse(f"set data.path={tmp_path}/alone/Train$", tmp_path / "alone")


@pytest.mark.parametrize(
    "folders, path, test_path",
    [
        (("train2017", "val2017"), "train2017", "val2017"),
        (("training_set", "test_set"), "training_set", "test_set"),
        (("Train images", "Validation images", "annotated"), "Train images", "Validation images"),
        (("trainset", "testset"), "trainset", "testset"),
        (("val", "test"), "val", "test"),
        (("train", "unlabeled"), "train", ""),
        (("train", "unlabeled", "test"), "train", "test"),
        (("train", "val", "test"), "train", "val"),
        (("data/train", "data/val"), "data/train", "data/val"),
        (("a/b/training/cat", "a/b/testing/cat"), "a/b/training", "a/b/testing"),
        (("test",), "test", ""),
    ],
)
def test_every_way_of_naming_splits_is_understood(tmp_path, folders, path, test_path):
    write(tmp_path, *(f"{folder}/{number}.png" for folder in folders for number in range(3)))
    more = f" and data.test_path={tmp_path}/{test_path}" if test_path else ""
    refuse(f"which (are splits, not classes|is a split, not a class): set data.path={tmp_path}/{path}{more}$", tmp_path)


def test_two_folders_of_one_split_are_named(tmp_path):
    write(tmp_path, *(f"{folder}/{file}" for folder in ("train2014", "train2017", "val2017") for file in CATS_AND_DOGS))
    refuse(
        "has 'train2014' and 'train2017' and 'val2017', which are splits.*: put the images of each .* into one folder$",
        tmp_path,
    )


def test_splits_are_seen_beside_an_image(tmp_path):
    write(tmp_path, "train/1.png", "train/2.png", "val/1.png", "preview.png")
    refuse(r"has 'train' and 'val', which are splits, not classes: set data.path=\S+/train and", tmp_path)
    write(tmp_path / "one", "train/1.png", "train/2.png")
    refuse("has 'train', which is a split, not a class", tmp_path / "one")


def test_splits_inside_of_classes_are_refused(tmp_path):
    write(
        tmp_path, *(f"{kind}/{split}/{n}.png" for kind in ("cat", "dog") for split in ("train", "test") for n in "12")
    )
    refuse("has 'test' and 'train' in each of its classes, .* set data.list=FILE and data.test_list=FILE$", tmp_path)


@pytest.mark.parametrize("folders", [("bus", "car", "train"), ("train/a", "plane/b"), ("exam", "test"), ("a", "b/val")])
def test_classes_with_a_split_s_name_are_classes(tmp_path, folders):
    write(tmp_path, *(f"{folder}/{number}.png" for folder in folders for number in range(3)))
    assert opened(tmp_path).num_classes == len(folders)


def test_what_was_understood_is_said_in_the_description(tmp_path):
    """The line that every run prints, whatever the verbosity."""
    write(tmp_path / "one", *(f"images/{i}.png" for i in range(20)))
    source = opened(tmp_path / "one")
    assert (source.num_classes, source.num_examples("train"), source.num_examples("test")) == (0, 20, 0)
    assert source.description.endswith(
        "0 test images, no labels (a single sub-folder, 'images', is no class: data.list=FILE gives some)"
    )
    write(tmp_path / "deep", *(f"images/{file}" for file in CATS_AND_DOGS))
    said = opened(tmp_path / "deep").description
    assert said.endswith(f"is no class: data.path={tmp_path}/deep/images takes its sub-folders as classes)")
    write(tmp_path / "stray", *CATS_AND_DOGS, "loose.png")
    source = opened(tmp_path / "stray")
    assert (source.num_classes, source.num_examples("train"), source.num_examples("test")) == (2, 2, 2)
    assert source.description.endswith(
        f"2 classes (1 of 5 images lie in no sub-folder and are left out: {tmp_path}/stray/loose.png)"
    )
    write(tmp_path / "stray", "loose2.png")
    source = opened(tmp_path / "stray")
    assert (source.num_classes, source.num_examples("train"), source.num_examples("test")) == (0, 6, 0)
    assert source.description.endswith(
        "no labels (as 2 of 6 images lie in no sub-folder: move them, or give labels by data.list=FILE)"
    )
    write(tmp_path / "plain", "1.png", "2.png")
    source = opened(tmp_path / "plain", test_path=str(tmp_path / "one"))
    assert source.description.endswith("20 test images, no labels")
    assert opened(tmp_path / "plain").description.endswith("2 training and 0 test images, no labels")


def test_a_hundredth_of_the_images_may_lie_beside_the_classes(tmp_path):
    many = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(100)]
    write(tmp_path, *many, "loose1.png", "loose2.png")
    assert opened(tmp_path).num_classes == 2
    write(tmp_path, "loose3.png")
    assert opened(tmp_path).num_classes == 0


def test_whatever_is_not_used_is_counted_and_named(tmp_path, caplog):
    write(tmp_path, *CATS_AND_DOGS, "README", "cow/5.heic", "cow/6.heic", "dog/notes.txt", "cat/.7.png", "dog/data")
    write(tmp_path, "eel/.8.png", ".fox/deep/9.png", ".git/config")
    (tmp_path / "gnu" / "deep").mkdir(parents=True)
    (tmp_path / "dog" / "again").symlink_to(tmp_path / "cat")
    opened(tmp_path)
    assert "7 files are not used" in caplog.text
    assert all(words in caplog.text for words in ("2 .heic", "1 .txt", "2 hidden", "2 without ending"))
    assert f"3 folders have no image: {tmp_path}/cow, {tmp_path}/eel, {tmp_path}/gnu\n" in caplog.text
    assert f"1 hidden folders have images, which are not used: {tmp_path}/.fox\n" in caplog.text
    assert f"1 links lead to folders that are read already: {tmp_path}/dog/again\n" in caplog.text


def test_nothing_is_said_where_all_is_used(tmp_path, caplog):
    write(tmp_path, *CATS_AND_DOGS, "cow/5.tif", "cow/6.tif")
    assert opened(tmp_path).class_names == ("cat", "cow", "dog")
    assert not caplog.text


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    write(tmp_path, *CATS_AND_DOGS)
    (tmp_path / "cat").chmod(0)
    refuse("cat' cannot be read", tmp_path)


def test_a_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    write(tmp_path, *CATS_AND_DOGS)
    scandir = os.scandir

    def failing(path):
        if os.fspath(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    refuse("cat' cannot be read .Permission denied.", tmp_path)


@pytest.mark.parametrize("separator, base", [("\t", True), (" ", True), (None, True), ("\t", False)])
def test_a_list_names_the_images(tmp_path, separator, base):
    write(tmp_path / "images", "a b.png", "c.png", "d.png", "e.png", "f.png")
    files = ["a b.png", "c.png", "d.png", "e.png"]
    labels = ["10", "2", "10", "2"]
    lines = [f if separator is None else f + separator + label for f, label in zip(files, labels, strict=True)]
    if not base:
        lines = [f"{tmp_path}/images/{line}" for line in lines]
    list_file = tmp_path / ("list.txt" if base else "images/list.txt")
    list_file.write_text("\n".join(lines) + "\n\n")
    source = opened(tmp_path / "images" if base else "", list=str(list_file))
    if separator is None:
        assert (source.num_classes, names(source)) == (0, files)
        return
    assert source.class_names == ("2", "10")
    by_name = {n: source.split(s).labels[i] for s in ("train", "test") for i, n in enumerate(names(source, s))}
    assert by_name == {"a b.png": 1, "c.png": 0, "d.png": 1, "e.png": 0}
    (tmp_path / "test.txt").write_text("".join(line + "\n" for line in lines[:1]))
    source = opened(tmp_path / "images" if base else "", list=str(list_file), test_list=str(tmp_path / "test.txt"))
    assert (names(source), names(source, "test"), source.split("test").labels.tolist()) == (files, ["a b.png"], [1])


def test_lists_that_cannot_work_are_refused(tmp_path, caplog):
    write(tmp_path, *CATS_AND_DOGS)
    file = tmp_path / "list.txt"
    refuse("data.list='/no/such' cannot be read", tmp_path, list="/no/such")
    file.write_text("\n")
    refuse("is empty", tmp_path, list=str(file))
    file.write_text("cat/1.png\t0\ncat/2.png\n")
    refuse("line 2, 'cat/2.png', is of another form than the first", tmp_path, list=str(file))
    file.write_text("gone.png\ngone2.png\n")
    refuse("has no readable image: all 2", tmp_path, list=str(file))
    file.write_text("cat/1.png\t0\ncat/2.png\t1\ncat/2.png\t1\n")
    (tmp_path / "test.txt").write_text("dog/3.png\t5\n")
    refuse("the class '5', which is no class of the training images", tmp_path, list=str(file),
           test_list=str(tmp_path / "test.txt"))  # fmt: skip
    assert "names 1 files more than once" in caplog.text


def test_files_of_another_number_of_channels_are_left_out_and_named(tmp_path):
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.full((9, 9, 5 if i in (0, 4) else 7), i, np.uint8))
    config = data_config(source="folder", path=str(tmp_path), channels=7)
    source = open_source(config)
    with pipeline.train_batches(source, [view_of((8, 8))], data_config=config, batch_size=6, seed=0) as batches:
        batch = next(batches)
    assert batch["image"].shape == (6, 8, 8, 7) and set(batch["index"]) == {1, 2, 3, 5}
    reason = "ValueError: 5 channels where data.channels=7"
    assert source.skipped == {str(tmp_path / f"{i}.npy"): reason for i in (0, 4)}
