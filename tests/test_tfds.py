"""Data sets of TFDS: read without TensorFlow, in any order, from TFRecord and ArrayRecord alike."""

import io
import os

import numpy as np
import pytest
from helpers import prepared
from helpers.views import data_config, view_of
from PIL import Image

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source, records
from maskcl_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def png(number: int, size=(12, 10)) -> bytes:
    """An image whose every pixel says its number."""
    file = io.BytesIO()
    Image.new("RGB", size, (number, 255 - number, 7)).save(file, "PNG")
    return file.getvalue()


def shards(lengths, start=0):
    """Images numbered from `start`, labels in turn."""
    numbers = iter(range(start, start + sum(lengths)))
    return [[{"image": png(n), "label": n % 2} for _, n in zip(range(k), numbers, strict=False)] for k in lengths]


def tiny(folder, *, file_format="tfrecord", **options):
    splits = {"train": shards([5, 1, 7]), "test": shards([4], start=100)}
    return prepared.write(folder / "tiny", splits, file_format=file_format, **options)


def config_of(folder, *, threads=2, **fields):
    return data_config(source="tfds", name="tiny", data_dir=str(folder), image_size=(10, 12), threads=threads, **fields)


def numbers(split) -> list[int]:
    """Of all images of a split, read one by one."""
    return [np.asarray(Image.open(io.BytesIO(split[i])))[0, 0, 0].item() for i in range(len(split))]


def refuse(match, **fields):
    with pytest.raises(UserError, match=match) as caught:
        open_source(data_config(source="tfds", **fields)).split("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "instruction",
    [
        "train",
        "test",
        "train[3:]",
        "train[:-2]",
        "train[-4:-1]",
        "train[:50%]",
        "train[33%:66%]",
        "test+train[:1]",
        "train[5:6]",
    ],
)
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_split_instructions_are_those_of_tfds(tmp_path, instruction, file_format):
    tiny(tmp_path, file_format=file_format)
    source = open_source(config_of(tmp_path, train_split=instruction))
    train, test = list(range(13)), list(range(100, 104))
    want = {
        "train": train, "test": test, "train[3:]": train[3:], "train[:-2]": train[:-2], "train[-4:-1]": train[-4:-1],
        "train[:50%]": train[:6], "train[33%:66%]": train[4:9], "test+train[:1]": test + train[:1],
        "train[5:6]": train[5:6],
    }[instruction]  # fmt: skip
    split = source.split("train")
    assert source.num_examples("train") == len(split) == len(want)
    assert numbers(split) == want
    assert split.labels.tolist() == [n % 2 for n in want]


def test_split_instructions_that_cannot_be(tmp_path):
    tiny(tmp_path)
    fixed = {"name": "tiny", "data_dir": str(tmp_path)}
    refuse("train_split='validation' is no split of tiny/1.0.0: it has train, test", train_split="validation", **fixed)
    for text in ("train[:14]", "train[:1.2.3%]", "train[-20:]"):
        refuse("is not understood, or more than the 13 images", train_split=text, **fixed)
    refuse("is empty", train_split="train[4:4]", **fixed)
    refuse("is no split", train_split="train[::2]", **fixed)


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_tfrecord_and_array_record_give_the_same_batches(tmp_path, cache_mb):
    batches = []
    for file_format in ("tfrecord", "array_record"):
        tiny(tmp_path / file_format, file_format=file_format, shape=(10, 12, 3))
        config = config_of(tmp_path / file_format, cache_mb=cache_mb)
        source = open_source(config)
        assert type(source.split("train")).__name__ == ("Arrays" if cache_mb else "Encoded")
        view = view_of((8, 8))
        with pipeline.train_batches(source, [view], data_config=config, batch_size=4, seed=0, start_step=2) as feed:
            batches.append([next(feed) for _ in range(5)])
    for a, b in zip(*batches, strict=True):
        for key, value in a.items():
            np.testing.assert_array_equal(value, b[key])


def test_large_sets_have_the_same_order_on_any_number_of_processes(tmp_path):
    tiny(tmp_path)
    config = config_of(tmp_path, cache_mb=0)

    def take(count, **options):
        source, view = open_source(config), view_of((8, 8))
        with pipeline.train_batches(source, [view], data_config=config, batch_size=4, seed=0, **options) as feed:
            return [next(feed) for _ in range(count)]

    straight, resumed = take(9), take(2, start_step=7)
    for a, b in zip(straight[7:], resumed, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    epochs = np.stack([batch["index"] for batch in straight]).reshape(3, 12)
    assert all(len(set(epoch)) == 12 for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    parts = [take(9, process_index=i, process_count=2) for i in range(2)]
    for whole, first, second in zip(straight, *parts, strict=True):
        for key in ("image", "index", "label"):
            np.testing.assert_array_equal(whole[key], np.concatenate([first[key], second[key]]))


def test_the_index_is_made_once_and_again_where_the_data_changed(tmp_path, monkeypatch):
    folder = tiny(tmp_path)
    scanned = []
    scan = records.scan
    monkeypatch.setattr(records, "scan", lambda path, *rest: scanned.append(path[-14:-9]) or scan(path, *rest))
    open_source(config_of(tmp_path)).split("train")
    assert sorted(scanned) == ["00000", "00001", "00002"]
    kept = folder / ".maskcl_jax" / "tiny-train.tfrecord-00001-of-00003.npz"
    assert kept.exists()
    open_source(config_of(tmp_path)).split("train")
    assert len(scanned) == 3
    changed = folder / "tiny-train.tfrecord-00001-of-00003"
    prepared.write_records(changed, [prepared.example(label=1, image=png(77))])
    os.utime(changed, ns=(0, 12345))
    split = open_source(config_of(tmp_path)).split("train")
    assert scanned[3:] == ["00001"]  # of what was indexed, only what is older than its data is indexed again
    assert (numbers(split)[5], split.labels[5]) == (77, 1)
    kept.write_bytes(b"damaged")
    assert numbers(open_source(config_of(tmp_path)).split("train")) == numbers(split)


def test_a_long_index_shows_its_progress_at_the_verbosity_of_the_commands(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING")
    monkeypatch.setattr(records, "SAY_SECONDS", 0.0)
    folder = tiny(tmp_path)
    open_source(config_of(tmp_path)).split("train")
    assert f"index of {folder}: 2 of 3 files" in caplog.text


def test_an_interrupted_index_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tiny(tmp_path)
    scan, scanned = records.scan, []

    def fail_once(path, *rest):
        scanned.append(path[-14:-9])
        if "00002" in path and len(scanned) <= 3:
            raise KeyboardInterrupt
        return scan(path, *rest)

    monkeypatch.setattr(records, "scan", fail_once)
    one_by_one = config_of(tmp_path, threads=1)
    with pytest.raises(KeyboardInterrupt):
        open_source(one_by_one).split("train")
    assert numbers(open_source(one_by_one).split("train")) == list(range(13))
    assert scanned == ["00000", "00001", "00002", "00002"]


def test_the_progress_of_an_index_is_said(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    folder = tiny(tmp_path)
    monkeypatch.setattr(records, "SAY_SECONDS", 0.0)
    open_source(config_of(tmp_path)).split("train")
    assert f"index of {folder}: 2 of 3 files" in caplog.text


@pytest.mark.parametrize("obstacle", ["permission", "file"])
def test_the_index_lies_in_the_cache_where_the_data_cannot_be_written(tmp_path, monkeypatch, obstacle):
    folder = tiny(tmp_path)
    if obstacle == "permission":
        folder.chmod(0o555)
    else:
        (folder / ".maskcl_jax").write_text("a file where the folder should be")
    open_source(config_of(tmp_path)).split("train")
    folder.chmod(0o755)
    assert len(list((tmp_path / "cache" / "maskcl_jax").rglob("tiny-train.tfrecord-0000*.npz"))) == 3
    monkeypatch.setattr(records, "scan", None)
    open_source(config_of(tmp_path)).split("train")


def test_damaged_files_are_one_line(tmp_path):
    folder = tiny(tmp_path)
    fixed = {"name": "tiny", "data_dir": str(tmp_path)}
    shard = folder / "tiny-train.tfrecord-00002-of-00003"
    content = shard.read_bytes()
    for kept in (len(content) - 3, 200, 5):
        shard.write_bytes(content[:kept])
        refuse("00002-of-00003 is damaged or truncated .*copy it again", **fixed)
    shard.write_bytes(content[: 16 + int.from_bytes(content[:8], "little")])
    refuse("00002-of-00003 has 1 records where dataset_info.json says 7", **fixed)
    shard.unlink()
    refuse("00002-of-00003 is missing, one of 3 files", **fixed)
    (folder / "features.json").write_text("{")
    refuse("features.json cannot be read", **fixed)
    tiny(tmp_path / "array", file_format="array_record")
    shard = next((tmp_path / "array").rglob("*train*00002-of-00003"))
    shard.write_bytes(shard.read_bytes()[:-40])
    refuse("00002-of-00003 is damaged or truncated", name="tiny", data_dir=str(tmp_path / "array"))


def test_a_record_that_is_gone_later_is_skipped(tmp_path):
    folder = tiny(tmp_path)
    config = config_of(tmp_path, cache_mb=0)
    source = open_source(config)
    source.split("train")
    shard = folder / "tiny-train.tfrecord-00002-of-00003"
    shard.write_bytes(shard.read_bytes()[:30])
    with pipeline.train_batches(source, [view_of((8, 8))], data_config=config, batch_size=6, seed=0) as feed:
        assert set(np.concatenate([next(feed)["index"] for _ in range(2)])) <= set(range(6))
    assert set(source.skipped) <= {f"example {i}" for i in range(6, 13)} and len(source.skipped) > 3


def test_an_image_that_cannot_be_decoded_is_left_out_of_memory(tmp_path):
    splits = {"train": shards([3, 3]), "test": shards([2])}
    splits["train"][1][0]["image"] = b"rubbish"
    prepared.write(tmp_path / "tiny", splits, shape=(10, 12, 3))
    source = open_source(config_of(tmp_path))
    assert source.split("train").images[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5]
    assert source.split("train").labels.tolist() == [0, 1, 0, 0, 1]
    assert list(source.skipped) == ["tiny/1.0.0 train example 3"]


def test_labels_may_come_before_and_after_a_large_image_and_be_absent(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    large = file.getvalue()
    assert len(large) > 2 * records.WINDOW
    rows = [{"image": large, "label": 1}, {"label": 1, "image": large}, {"image": large}, {"image": large, "label": -1}]
    prepared.write(tmp_path / "tiny", {"train": [rows], "test": [rows]})
    split = open_source(config_of(tmp_path)).split("train")
    assert split.labels.tolist() == [1, 1, -1, -1]
    assert [split[i] == large for i in range(4)] == [True] * 4


def test_tfds_says_how_to_prepare(tmp_path):
    fixed = {"data_dir": str(tmp_path)}
    refuse("'cifar11' is not prepared .* did you mean .*cifar10", name="cifar11", **fixed)
    refuse(f"build cifar10 --data_dir={tmp_path}`", name="cifar10", **fixed)
    refuse(r"ILSVRC2012_img_train.tar .*downloads/manual", name="imagenet2012:5.*.*", **fixed)
    refuse("is no TFDS name", name="what ever?", **fixed)
