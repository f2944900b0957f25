"""The sources: every kind of file, labels, what is refused, and that embedded tests never see training pixels."""

import itertools
import pathlib
import re
import tarfile

import numpy as np
import pytest
from helpers import prepared
from helpers.views import data_config, host_batch, view_of
from PIL import Image

from maskcl_jax.data import decode, pipeline
from maskcl_jax.data.sources import embedded, open_source
from maskcl_jax.errors import UserError


def picture(mode):
    """A smooth 40x30 picture in a Pillow mode, and the RGB that it should be read as."""
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    rgb = small.resize((40, 30), Image.Resampling.BICUBIC)
    grey = np.asarray(rgb.convert("L"))
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1)))
    share = np.asarray(alpha, np.float32)[..., None] / 255
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1)
    if mode in ("LA", "RGBA"):
        image = rgb.convert(mode)
        image.putalpha(alpha)
        opaque = np.asarray(rgb.convert("L").convert("RGB") if mode == "LA" else rgb, np.float32)
        return image, opaque * share + 255 * (1 - share)
    image = rgb.convert(mode)
    return image, np.asarray(image.convert("RGB"))


# name, mode, how far the mean may be from the truth (grey levels): what the format itself loses
FILES = [
    ("rgb.jpg", "RGB", 4),
    ("grey.jpeg", "L", 2),
    ("cmyk.jpg", "CMYK", 4),
    ("rgb.png", "RGB", 0),
    ("grey.PNG", "L", 0),
    ("grey_alpha.png", "LA", 0.6),
    ("rgba.png", "RGBA", 0.6),
    ("palette.png", "P", 0),
    ("bilevel.png", "1", 0),
    ("sixteen.png", "I;16", 0),
    ("rgb.webp", "RGB", 4),
    ("rgb.bmp", "RGB", 0),
    ("palette.gif", "P", 0),
]


@pytest.mark.parametrize("channels", [3, 1])
def test_every_kind_of_file_is_read(tmp_path, channels):
    truth = {}
    for name, mode, lost in FILES:
        image, rgb = picture(mode)
        image.save(tmp_path / name, **({"quality": 95} if name.endswith(("jpg", "jpeg", "webp")) else {}))
        truth[name] = rgb, lost
    config = data_config(source="folder", path=str(tmp_path), test_path=str(tmp_path), image_size=(30, 40))
    config.channels = channels
    source = open_source(config)
    with pipeline.eval_batches(source, "test", data_config=config, batch_size=len(FILES)) as batches:
        (batch,) = batches
    assert batch["valid"].all(), source.skipped
    for image, index in zip(batch["image"], batch["index"], strict=True):
        name = pathlib.Path(source.split("test").payloads[index]).name
        rgb, lost = truth[name]
        want = decode.to_channels(np.round(rgb).astype(np.uint8), channels).astype(np.float32)
        assert abs(image - want).mean() <= lost + (channels == 1), name
        # What other libraries decode, Pillow decodes the same; to grey, libjpeg takes Y, Pillow comes from RGB.
        with_pillow = decode.decode_with_pillow((tmp_path / name).read_bytes(), channels)
        assert abs(image.astype(int) - with_pillow).max() <= (1 if channels == 3 else 3), name


def test_files_are_cropped_as_by_pillow(tmp_path):
    width = 48
    rng = np.random.default_rng(2)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    small.resize((120, 90), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    small.resize((120, 90), Image.Resampling.BICUBIC).save(tmp_path / "b.jpg", quality=95, subsampling=0)
    config = data_config(source="folder", path=str(tmp_path))
    views = [view_of((32, width), name=kind, interpolation=kind) for kind in ("bicubic", "bilinear")]
    with pipeline.train_batches(
        open_source(config), views, data_config=config, batch_size=2, seed=0, start_step=3
    ) as batches:
        some = list(itertools.islice(batches, 9))  # views that reach further down than the other, and less far
    flips = set()
    for epoch, batch in enumerate(some, 3):
        for row, index in enumerate(batch["index"]):
            image = decode.decode_with_pillow((tmp_path / ("a.png", "b.jpg")[index]).read_bytes(), 3)
            crops = host_batch(views, [index], epoch=epoch, image=image.shape[:2]).crops
            flips.add((int(index), *(bool(crops[view.name][0, 4]) for view in views)))
            for view in views:
                top, left, height, width, flip = crops[view.name][0].tolist()
                crop = Image.fromarray(image[top : top + height, left : left + width])
                want = np.asarray(crop.resize(view.crop.size[::-1], decode.RESAMPLING[view.crop.interpolation]))
                apart = abs(batch[view.name][row].astype(int) - (want[:, ::-1] if flip else want))
                assert apart.max() <= 1
    assert len(flips) == 8  # of either file: both views mirrored, one, the other, none


def test_an_image_has_the_same_pixels_in_every_source(tmp_path):
    rng = np.random.default_rng(2)
    images = np.stack(
        [
            np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((60, 44)))
            for _ in range(8)
        ]
    )
    encoded = []
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        encoded.append({"image": (tmp_path / f"{i}.png").read_bytes(), "label": 0})
    np.savez(tmp_path / "data.npz", train_images=images)
    prepared.write(tmp_path / "tiny", {"train": [encoded], "test": [encoded]})
    with tarfile.open(tmp_path / "data.tar", "w") as file:
        for i in range(8):
            file.add(tmp_path / f"{i}.png", f"{i}.png")
    (tmp_path / "list.txt").write_text("".join(f"{i}.png\n" for i in range(8)))
    views = [view_of((24, 32), name=kind, interpolation=kind) for kind in ("bicubic", "bilinear")]
    batches = {}
    for name, fields in {
        "folder": {"source": "folder", "path": str(tmp_path)},
        "list": {"source": "folder", "list": str(tmp_path / "list.txt")},
        "npz": {"source": "npz", "path": str(tmp_path / "data.npz")},
        "tar": {"source": "tar", "path": str(tmp_path / "data.tar")},
        "tfds": {"source": "tfds", "name": "tiny", "data_dir": str(tmp_path)},
    }.items():
        config = data_config(**fields)
        with pipeline.train_batches(open_source(config), views, data_config=config, batch_size=8, seed=0) as feed:
            batches[name] = next(feed)
    for name, batch in batches.items():
        for key in ("bicubic", "bilinear", "index"):
            np.testing.assert_array_equal(batch[key], batches["folder"][key], err_msg=name)


@pytest.mark.parametrize("missing", ["simplejpeg", "cykooz_resizer"])
def test_pillow_does_the_work_of_a_missing_library(tmp_path, missing, monkeypatch):
    picture("RGB")[0].resize((120, 90)).save(tmp_path / "a.jpg", quality=95)
    config = data_config(source="folder", path=str(tmp_path))

    def batch():
        views = [view_of((32, 48))]
        with pipeline.train_batches(open_source(config), views, data_config=config, batch_size=1, seed=0) as batches:
            return next(batches)["image"].astype(int)

    with_it = batch()
    monkeypatch.setattr(decode, missing, None)
    assert abs(batch() - with_it).max() <= 1


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture("RGB")[0].save(path)


def test_labels_come_from_the_first_level_or_not_at_all(tmp_path):
    for name in ("cat/x/1.png", "cat/2.png", "dog/3.png", "dog/4.png", ".hidden/5.png", "dog/.6.png", "dog/7.txt"):
        write(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("no image")
    (tmp_path / "dog" / "up").symlink_to(tmp_path)  # would never end
    source = open_source(data_config(source="folder", path=str(tmp_path)))
    assert source.class_names == ("cat", "dog")
    seen = {}
    for split in ("train", "test"):
        data = source.split(split)
        seen |= {pathlib.Path(p).name: source.class_names[n] for p, n in zip(data.payloads, data.labels, strict=True)}
        assert np.bincount(data.labels).tolist() == [1, 1]  # one of each class is held out
    assert seen == {"1.png": "cat", "2.png": "cat", "3.png": "dog", "4.png": "dog"}
    write(tmp_path / "loose.png")
    write(tmp_path / "loose2.png")
    source = open_source(data_config(source="folder", path=str(tmp_path)))
    assert (source.num_classes, source.num_examples("train"), source.num_examples("test")) == (0, 6, 0)
    assert (source.split("train").labels == -1).all()


def refuse(match, **fields):
    with pytest.raises(UserError, match=match) as caught:
        open_source(data_config(**fields))
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_work_is_refused(tmp_path):
    refuse("data.path='' is empty", source="folder")
    refuse("data.path='/no/such' does not exist", source="folder", path="/no/such")
    (tmp_path / "a.txt").write_text("no image")
    refuse("is a file", source="folder", path=str(tmp_path / "a.txt"))
    refuse("has no images", source="folder", path=str(tmp_path))
    for name in ("1.jpg", "2.png"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff not an image")
    refuse("has no readable image: all 2", source="folder", path=str(tmp_path))
    write(tmp_path / "train" / "cat" / "1.png")
    write(tmp_path / "train" / "dog" / "1.png")
    write(tmp_path / "test" / "cow" / "1.png")
    refuse("'cow', which is no class", source="folder", path=f"{tmp_path}/train", test_path=f"{tmp_path}/test")
    write(tmp_path / "one" / "1.png")
    refuse("3 channels where data.channels=2", source="folder", path=str(tmp_path / "one"), channels=2)


def test_fields_that_cannot_work_are_refused():
    refuse("data.source='imagenet' is unknown: use one of embedded", source="imagenet")
    refuse("data.num_examples=0", source="synthetic", num_examples=0)
    refuse("data.eval_resize=0.5", source="synthetic", eval_resize=0.5)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n", b"GIF89a", b"text"])
def test_rubbish_is_skipped_and_named(tmp_path, content, caplog):
    for i in range(3):
        write(tmp_path / f"{i}.png")
    (tmp_path / "rubbish.jpg").write_bytes(content)
    config = data_config(source="folder", path=str(tmp_path), threads=1)
    source = open_source(config)
    with pipeline.train_batches(source, [view_of((8, 8))], data_config=config, batch_size=1, seed=0) as batches:
        index = [next(batches)["index"][0] for _ in range(8)]
    assert set(index) == {0, 1, 2}  # the batch that has rubbish alone takes its image from the next one
    assert list(source.skipped) == [str(tmp_path / "rubbish.jpg")]
    assert len(re.findall("rubbish.jpg", caplog.text)) == 1


def test_all_unreadable_after_the_start_ends_with_an_error(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.png")
    config = data_config(source="folder", path=str(tmp_path), threads=1)
    source = open_source(config)
    for file in tmp_path.iterdir():
        file.write_bytes(b"gone")
    with (
        pipeline.train_batches(source, [view_of((8, 8))], data_config=config, batch_size=2, seed=0) as batches,
        pytest.raises(UserError, match="none of the 4 images can be decoded"),
    ):
        next(batches)


def test_embedded_test_tiles_share_no_pixel_with_training_tiles():
    for file in embedded.photographs():
        with Image.open(file) as image:
            photograph = np.asarray(image.convert("RGB"))
        used = {}
        for split in ("train", "test"):
            used[split] = np.zeros(photograph.shape[:2], bool)
            for y, x in embedded.tile_corners(photograph, split, file.stem):
                assert photograph[y : y + embedded.TILE, x : x + embedded.TILE].shape[:2] == (48, 48)
                used[split][y : y + embedded.TILE, x : x + embedded.TILE] = True
        rows, columns = np.nonzero(used["test"])
        for dy, dx in ((0, 0), (7, 0), (-7, 0), (0, 7), (0, -7)):  # nor within the gap
            y = np.clip(rows + dy, 0, used["train"].shape[0] - 1)
            x = np.clip(columns + dx, 0, used["train"].shape[1] - 1)
            assert not used["train"][y, x].any(), file.stem


def test_embedded_is_balanced_and_looks_like_its_photographs():
    source = open_source(data_config(source="embedded"))
    assert source.num_classes == len(source.class_names) == 18
    for split, least, most in (("train", 300, 400), ("test", 70, 80)):
        data = source.split(split)
        counts = np.bincount(data.labels)
        assert counts.min() >= least and counts.max() <= most
        assert data.images.shape == (source.num_examples(split), 48, 48, 3)
        assert data.images.std(axis=(1, 2, 3)).min() > 4
