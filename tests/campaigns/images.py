"""Damaged image files through the real source and pipeline.

    python tests/campaigns/images.py [--seed=0] [--count=1000] [--start=0]
    python tests/campaigns/images.py --seed=0 --only=113

Each file is made by Pillow, tifffile or NumPy in one of many formats and modes, damaged, and put into a folder beside
two whole images. The folder is read as data.source=folder: batches of training and of evaluation. What Pillow reads
fully must be used, with Pillow's pixels; anything else must be skipped, named in the log and counted. An exception, or
more than 60 s, is a failure.
"""

import io
import pathlib
import sys
import warnings

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))

SIZE = (40, 48)  # height, width
SAVED = {
    "png": (".png", "PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), ({}, {"transparency": 7})),
    "jpeg": (
        ".jpg",
        "JPEG",
        ("L", "RGB", "CMYK", "YCbCr"),
        ({}, {"progressive": True}, {"quality": 100, "subsampling": 0}),
    ),
    "webp": (".webp", "WEBP", ("RGB", "RGBA"), ({}, {"lossless": True})),
    "tiff": (
        ".tif",
        "TIFF",
        ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I", "LAB"),
        ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}),
    ),
    "gif": (".gif", "GIF", ("L", "P", "RGB", "RGBA"), ({}, {"save_all": True})),
    "bmp": (".bmp", "BMP", ("1", "L", "P", "RGB", "RGBA"), ({},)),
    "ppm": (".ppm", "PPM", ("1", "L", "RGB", "I;16", "F"), ({},)),
    "avif": (".avif", "AVIF", ("L", "RGB", "RGBA"), ({},)),
}
ENDINGS = (*(entry[0] for entry in SAVED.values()), ".npy", ".JPEG", ".TIFF", ".Png", ".pgm")


def whole(kind: str, rng: np.random.Generator) -> bytes:
    """A file of a format that shows smooth noise, in one of the format's modes."""
    from PIL import Image

    small = rng.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    picture = Image.fromarray(small, "RGBA").resize(SIZE[::-1], Image.Resampling.BICUBIC)
    written = io.BytesIO()
    if kind == "npy":
        array = np.asarray(picture)[..., : rng.choice([1, 3, 3, 3, 4])].astype(
            rng.choice(["u1", "u1", "u2", "f4", "i8"])
        )
        np.save(written, array)
        return written.getvalue()
    _, name, modes, options = SAVED[kind]
    mode, option = str(rng.choice(modes)), dict(options[rng.integers(len(options))])
    if mode in ("I;16", "I"):
        values = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        picture = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    elif mode == "LAB":
        picture = Image.frombytes("LAB", picture.size, picture.convert("RGB").tobytes())
    else:
        picture = picture.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "P") else picture.convert(mode)
    if mode == "F" and small[0, 0, 0] % 2:  # half of them with values that have a meaning
        picture = Image.fromarray(np.asarray(picture) / np.float32(255))
    if "transparency" in option and mode not in ("L", "P", "I;16", "1"):
        option.pop("transparency")
    if option.get("compression") == "packbits" and mode == "F":
        option.pop("compression")
    if option.get("save_all"):
        option["append_images"] = [picture.rotate(90 * i) for i in (1, 2)]
    if kind in ("jpeg", "png", "webp", "tiff") and rng.random() < 0.4:
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(0, 10))
        option["exif"] = exif.tobytes()
    try:
        picture.save(written, name, **option)
    except (OSError, RuntimeError):  # not every option goes with every mode
        written = io.BytesIO()
        picture.save(written, name)
    return written.getvalue()


def cut_last(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: len(data) - rng.integers(1, min(20, len(data)))]


def bits_of_the_head(data: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(1, 6))):
        data[rng.integers(min(64, len(data)))] ^= 1 << rng.integers(8)
    return data


def empty(data: bytearray, rng: np.random.Generator) -> bytearray:
    return bytearray(int(rng.choice([0, 1, 3, 1000])))


def huge(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Height and width, wherever the two numbers stand, become others, up to what the field holds."""
    for width in (4, 2):
        for order in ("big", "little"):
            for side in SIZE:
                old = side.to_bytes(width, order)
                at = bytes(data[:200]).find(old)
                if at >= 0 and rng.random() < 0.7:
                    limit = 2 ** int(rng.integers(1, 8 * width))
                    data[at : at + width] = int(rng.integers(0, limit)).to_bytes(width, order)
    return data


def huge_text(data: bytearray, rng: np.random.Generator) -> bytearray:
    """The same where the header is text."""
    for side in SIZE:
        if rng.random() < 0.7:
            number = str(int(rng.integers(0, 10 ** int(rng.integers(1, 12))))).encode()
            head = bytes(data[:200]).replace(str(side).encode(), number, 1)
            data = bytearray(head + bytes(data[200:]))
    return data


def metadata(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Garbage as EXIF: of a JPEG as a segment of its own, elsewhere wherever the word stands."""
    garbage = rng.bytes(int(rng.integers(0, 200)))
    if data[:2] == b"\xff\xd8":
        content = b"Exif\0\0" + rng.choice([b"", b"II*\0\x08\0\0\0", b"MM\0*"]) + garbage
        return data[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + data[2:]
    for word in (b"eXIf", b"EXIF", b"Exif"):
        if (at := data.find(word)) >= 0:
            data[at + 4 : at + 4 + len(garbage)] = garbage
    return data + b"Exif" + garbage


def nothing(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data


DAMAGE = {
    "whole, with a wrong ending": nothing,
    "whole": nothing,
    "cut": common.cut,
    "last bytes cut": cut_last,
    "bits": common.bits,
    "bits of the head": bits_of_the_head,
    "zeros": common.zeros,
    "noise": common.noise,
    "parts exchanged": common.exchanged,
    "longer": common.longer,
    "empty or zeros only": empty,
    "sides in the header": huge,
    "metadata": metadata,
}


def by_pillow(data: bytes, channels: int) -> np.ndarray | None:
    """What Pillow (for .npy NumPy) shows of a file, (H, W, 3); pixels are -1 where the library has rules of its own.

    None where it cannot be read fully, or it is unknown which of its values is white.
    """
    from PIL import Image

    try:
        if data[:6] == b"\x93NUMPY":
            array = np.load(io.BytesIO(data), allow_pickle=False)
            fits = (
                array.dtype in (np.uint8, np.uint16) and array.ndim == 3 and array.shape[2] == channels and array.size
            )
            return None if not fits else array if array.dtype == np.uint8 else np.full(array.shape, -1)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            tags, values = getattr(image, "tag_v2", {}), np.asarray(image)
            if (tags and image.mode == "I") or 2 in tags.get(339, ()):  # 32 bits, or signed
                return None
            if image.mode == "F" and not (values.min() >= 0 and values.max() <= 1):
                return None
            plain = image.mode in ("RGB", "L", "1", "CMYK", "YCbCr", "P", "HSV") and "transparency" not in image.info
            pixels = np.asarray(image.convert("RGB"))
            return pixels.astype(int) if plain else np.full(pixels.shape, -1)
    except Exception:
        return None


def attempt(seed: int, index: int, folder: pathlib.Path) -> common.Outcome:
    """One damaged file."""
    from helpers.views import data_config, view_of
    from PIL import Image

    from maskcl_jax.data import pipeline
    from maskcl_jax.data.sources import open_source

    warnings.simplefilter("ignore")  # Pillow's, of damaged files
    rng = np.random.default_rng([seed, index])
    kind = [*SAVED, "npy"][index % (len(SAVED) + 1)]
    damage = list(DAMAGE)[index // (len(SAVED) + 1) % len(DAMAGE)]
    change = huge_text if kind == "ppm" and damage == "sides in the header" else DAMAGE[damage]
    data = bytes(change(bytearray(whole(kind, rng)), rng))
    right = ".npy" if kind == "npy" else SAVED[kind][0]
    name = str(rng.choice(["a", "m", "z"])) + (
        str(rng.choice(ENDINGS)) if damage == "whole, with a wrong ending" else right
    )
    for neighbour in ("b", "n"):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / f"{neighbour}.png")
    (folder / name).write_bytes(data)
    channels, exif = int(rng.choice([1, 3, 3, 3])), bool(rng.random() < 0.3)
    moments = {"channels": channels, "exif": exif, "threads": 1}
    config = data_config(source="folder", path=str(folder), image_size=SIZE, **moments)
    expected = by_pillow(data, channels)
    result, source = "used", open_source(config)
    with pipeline.eval_batches(source, "train", data_config=config, batch_size=3) as batches:
        (batch,) = batches
    with pipeline.train_batches(source, [view_of((16, 16))], data_config=config, batch_size=3, seed=0) as batches:
        trained = next(batches)["index"]
    names = [pathlib.Path(file).name for file in source.split("train").payloads]
    at = names.index(name)
    used = bool(batch["valid"][list(batch["index"]).index(at)]) if at in batch["index"] else False
    outcome = common.Outcome(damage, "used" if used else "skipped")
    reason = next((text for file, text in source.skipped.items() if file.endswith(f"/{name}")), "")
    if used != (expected is not None):
        outcome.failure = f"{name} ({kind}) is {result if used else f'skipped ({reason})'}, Pillow says otherwise"
    elif not used and not (reason and "\n" not in reason and " at 0x" not in reason):
        outcome.failure = f"{name} is skipped without a reason in one line: {reason!r}"
    elif sorted(source.skipped) != [str(folder / name)] * (not used) or batch["valid"].sum() != 2 + used:
        outcome.failure = f"skipped are {source.skipped}, valid {batch['valid']}"
    elif used != (at in trained):
        outcome.failure = f"training used {trained} of {names}"
    elif used and not exif and channels == 3 and expected.shape[:2] == SIZE and expected.min() >= 0:
        shown = batch["image"][list(batch["index"]).index(at)].astype(int)
        outcome.counts["compared with Pillow's pixels"] += 1
        if (worst := abs(shown - expected).max()) > 0:
            outcome.failure = f"{name} ({kind}): pixels differ from Pillow's by up to {worst}"
    return outcome


if __name__ == "__main__":
    common.run(attempt, __doc__, count=1000)
