"""Tar files: what is used, what is left out and said, what is refused."""

import io
import os
import re
import tarfile

import numpy as np
import pytest
from helpers.folders import encoded, opened, refuse, write
from PIL import Image

from maskcl_jax.data.sources import records

pytestmark = pytest.mark.usefixtures("own_cache")


def tar(path, members):
    """A tar file of {name: content}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def shard(path, numbers):
    tar(path, {f"./{n:03}.{end}": c for n in numbers for end, c in (("cls", b"%d\n" % (n % 3)), ("png", encoded(n)))})


def pixels_of(source, split="train"):
    """The numbers of all images that can be read, None for others."""
    out = []
    for i in range(source.num_examples(split)):
        try:
            out.append(np.asarray(Image.open(io.BytesIO(source.split(split)[i])))[0, 0, 0].item())
        except OSError:
            out.append(None)
    return out


def test_tar_files_are_read_member_by_member(tmp_path, monkeypatch):
    for number in range(3):
        shard(tmp_path / "train" / f"{number}.tar", range(5 * number, 5 * number + 5))
    shard(tmp_path / "val.tar", range(40, 44))
    source = opened(tmp_path / "train", source="tar", test_path=str(tmp_path / "val.tar"))
    assert source.description == f"tar {tmp_path}/train, 15 training and 4 test images, 3 classes"
    assert pixels_of(source) == list(range(15)) and pixels_of(source, "test") == [40, 41, 42, 43]
    assert source.split("train").labels.tolist() == [n % 3 for n in range(15)]
    monkeypatch.setattr("maskcl_jax.data.sources.tar.scan", None)  # the index is kept
    again = opened(tmp_path / "train" / "*.tar", source="tar", test_path=str(tmp_path / "val.tar"))
    assert pixels_of(again)[-3:] == [12, 13, 14]


def test_of_labeled_tars_a_tenth_of_every_class_is_held_out(tmp_path):
    for number in range(3):
        shard(tmp_path / "train" / f"{number}.tar", range(20 * number, 20 * number + 20))
    source = opened(tmp_path / "train", source="tar")
    train, test = pixels_of(source), pixels_of(source, "test")
    assert sorted(train + test) == list(range(60)) and train == sorted(train)
    assert [n % 3 for n in train] == source.split("train").labels.tolist()
    assert np.bincount(source.split("test").labels).tolist() == [2, 2, 2]
    # A new file of as many images moves a tenth of it over, and few of the others.
    shard(tmp_path / "train" / "3.tar", range(60, 80))
    more = pixels_of(opened(tmp_path / "train", source="tar"), "test")
    assert len(more) == 9 and len(set(more) & set(test)) >= 3
    tar(tmp_path / "plain.tar", {f"{n}.png": encoded(n) for n in range(20)})
    plain = opened(tmp_path / "plain.tar", source="tar")
    assert (plain.num_classes, plain.num_examples("train"), plain.num_examples("test")) == (0, 20, 0)


@pytest.mark.parametrize(
    "files, path, test_path, roles",
    [
        (("train-0.tar", "train-1.tar", "val-0.tar"), "*train*.tar", "*val*.tar", ("train", "val")),
        (("set_train_00.tar", "set_validation_00.tar"), "*train*.tar", "*validation*.tar", ("train", "val")),
        (("train/0.tar", "val/0.tar"), "train", "val", ("train", "val")),
        (("a/train2017/0.tar", "a/test/0.tar"), "train2017", "test", ("train", "test")),
        (("a/train-0.tar", "b/train-0.tar", "b/test-0.tar"), "**/*train*.tar", "b/*test*.tar", ("train", "test")),
    ],
)
def test_tar_files_of_several_splits_are_refused(tmp_path, files, path, test_path, roles):
    for number, file in enumerate(files):
        shard(tmp_path / file, range(5 * number, 5 * number + 5))
    common = tmp_path / ("a" if all(file.startswith("a/") for file in files) else "")
    flags = f"set data.path={common / path} and data.test_path={common / test_path}"
    refuse(f"which are splits: {re.escape(flags)}$", tmp_path, source="tar")
    source = opened(common / path, source="tar", test_path=str(common / test_path))
    counts = [5 * sum(role in file for file in files) for role in roles]
    assert [source.num_examples(split) for split in ("train", "test")] == counts
    only = f"set data.test_path={common / test_path}"
    refuse(f"which are splits: {re.escape(only)}$", common / path, source="tar", test_path=str(tmp_path))


@pytest.mark.parametrize(
    "files, path, test_path",
    [
        (("train/x/0.tar", "val/y/0.tar"), "train/x", "val/y"),
        (("x/train/0.tar", "y/train/0.tar", "x/val/0.tar"), "**/train/**/*.tar", "x/val"),
        (("Train-0.tar", "Val-0.tar"), "*Train*.tar", "*Val*.tar"),
        (("trainval-0.tar", "val-0.tar"), None, None),  # *val*.tar would take both
    ],
)
def test_the_pattern_that_is_advised_has_the_files_of_one_split(tmp_path, files, path, test_path):
    for number, file in enumerate(files):
        shard(tmp_path / file, range(5 * number, 5 * number + 5))
    remedy = "move the files of each split into a folder of its own"
    if path:
        remedy = f"set data.path={tmp_path / path} and data.test_path={tmp_path / test_path}"
        source = opened(tmp_path / path, source="tar", test_path=str(tmp_path / test_path))
        assert [source.num_examples(split) for split in ("train", "test")] == [5 * (len(files) - 1), 5]
    refuse(f"which are splits: {re.escape(remedy)}$", tmp_path, source="tar")


def test_a_path_may_be_written_in_any_way(tmp_path, monkeypatch):
    for number, file in enumerate(("s/train/0.tar", "s/val/0.tar", "flat/train-0.tar", "flat/val-0.tar")):
        shard(tmp_path / file, range(5 * number, 5 * number + 5))
    monkeypatch.chdir(tmp_path)
    refuse("set data.path=s/train and data.test_path=s/val$", "./s", source="tar")
    refuse("set data.path=s/train and data.test_path=s/val$", "s/../s/", source="tar")
    refuse(r"set data.path=flat/\*train\*.tar and data.test_path=flat/\*val\*.tar$", "./flat/*.tar", source="tar")
    monkeypatch.chdir(tmp_path / "s")
    refuse("set data.path=train and data.test_path=val$", ".", source="tar")
    monkeypatch.chdir(tmp_path / "flat")
    refuse(r"set data.path=\*train\*.tar and data.test_path=\*val\*.tar$", ".", source="tar")


def test_what_lies_in_tar_files_and_beside_them_and_is_not_used_is_said(tmp_path, caplog):
    tar(
        tmp_path / "a.tar",
        {"1.png": encoded(), "1.json": b"{}", "1.cls": b"0", "93.été": b"x"} | {f"{n}.jp2": b"x" for n in range(2, 92)},
    )
    tar(tmp_path / "b.tar", {"1.txt": b"x", "folder/README": b"x"})
    write(tmp_path, "loose.png", "c.tgz", "d.tgz", ".hidden/e.png")
    for _ in range(2):  # by the kept index too
        caplog.clear()
        assert opened(tmp_path, source="tar").num_examples("train") == 1
        assert (
            f"{tmp_path}: 93 members belong to no image and are not used: 90 .jp2, 1 .été, 1 .txt, 1 without ending"
            in caplog.text
        )
        assert f"1 .tar files have no image: {tmp_path}/b.tar" in caplog.text
        assert "3 files beside the .tar files are not used: 2 .tgz, 1 .png" in caplog.text
    caplog.clear()
    shard(tmp_path / "whole" / "a.tar", range(5))
    opened(tmp_path / "whole", source="tar")
    assert not caplog.text


def test_damage_in_a_tar_costs_the_damaged_member(tmp_path):
    path, fields = tmp_path / "a.tar", {"source": "tar", "test_path": str(tmp_path / "val" / "b.tar")}
    shard(path, range(5))
    shard(tmp_path / "val" / "b.tar", range(3))
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        second = file.getmember("./001.png")
        last = file.getmember("./004.png")
    content[second.offset + 3] ^= 0xFF
    path.write_bytes(content)
    source = opened(path, **fields)
    assert pixels_of(source) == [0, None, 2, 3, 4]
    assert source.split("train").labels.tolist() == [0, -1, 2, 0, 1]
    path.write_bytes(content[: last.offset_data + 20])
    os.utime(path, ns=(0, 5))
    assert pixels_of(opened(path, **fields)) == [0, None, 2, 3, None]


def test_tar_files_that_cannot_work_are_refused(tmp_path):
    refuse("has no .tar file", tmp_path, source="tar")
    shard(tmp_path / "tars" / "a.tar", range(3))
    refuse("but 1 .tar files: set data.source=tar", tmp_path / "tars")
    refuse("is a file: set data.source=tar", tmp_path / "tars" / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"rubbish" * 300)
    refuse("b.tar", tmp_path / "b.tar", source="tar")
    with tarfile.open(tmp_path / "c.tar", "w:gz") as file:
        file.add(tmp_path / "b.tar")
    refuse("c.tar", tmp_path / "c.tar", source="tar")
    tar(tmp_path / "d.tar", {"1.png": encoded(), "1.cls": b"cat"})
    refuse("d.tar: 1.cls holds b'cat': a label must be a whole number", tmp_path / "d.tar", source="tar")
    tar(tmp_path / "e.tar", {"1.txt": b"x"})
    refuse("has no image in 1 .tar files", tmp_path / "e.tar", source="tar")
    tar(tmp_path / "f.tar", {"1.png": b"x"})
    refuse("has no readable image", tmp_path / "f.tar", source="tar")
    assert records.ENTRY.itemsize == 24
