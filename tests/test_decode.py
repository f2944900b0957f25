"""Pixels: Pillow's, by faster libraries too; channels, orientation, odd depths, large files."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskcl_jax.data import decode


def saved(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def noise(*shape, dtype=np.uint8, top=256, seed=0):
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def smooth(size=(90, 120), seed=2):
    small = Image.fromarray(noise(9, 12, 3, seed=seed))
    return np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("top", [256, 2])
def test_resizing_is_pillows(interpolation, channels, top):
    assert decode.cykooz_resizer is not None
    for size in ((97, 131), (224, 224), (60, 300), (150, 97), (151, 200)):
        image = noise(150, 200, channels, top=top) * (255 // (top - 1))  # black and white: the cubic overshoots most
        want = [
            Image.fromarray(image[..., c]).resize(size[::-1], decode.RESAMPLING[interpolation]) for c in range(channels)
        ]
        apart = abs(decode.resize(image, size, interpolation).astype(int) - np.stack([np.asarray(w) for w in want], -1))
        assert (apart > 1).mean() < 1e-4
        assert apart.max() <= 2
        assert apart.mean() < 0.02


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_crops_are_of_the_box_alone_and_mirrored(flip, missing, monkeypatch):
    if missing:
        monkeypatch.setattr(decode, "cykooz_resizer", None)
    image = smooth()
    box = np.array([10, 20, 40, 60])
    got = decode.crop_and_resize(image, box, size=(30, 30), interpolation="bicubic", flip=flip)
    want = np.asarray(Image.fromarray(image[10:50, 20:80]).resize((30, 30), Image.Resampling.BICUBIC))
    assert abs(got.astype(int) - (want[:, ::-1] if flip else want)).max() <= (0 if missing else 1)
    same = decode.crop_and_resize(image, box, size=(40, 60), interpolation="bicubic", flip=flip)
    np.testing.assert_array_equal(same, image[10:50, 20:80][:, ::-1] if flip else image[10:50, 20:80])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_jpegs_are_pillows_with_and_without_the_fast_library(channels, options, monkeypatch):
    encoded = saved(smooth(), "JPEG", quality=90, **options)
    fast = decode.decode(encoded, channels)
    assert fast.shape == (90, 120, channels)
    with_pillow = decode.decode_with_pillow(encoded, channels)
    assert abs(fast.astype(int) - with_pillow).max() <= (1 if channels == 3 else 3)
    monkeypatch.setattr(decode, "simplejpeg", None)
    np.testing.assert_array_equal(decode.decode(encoded, channels), with_pillow)
    assert decode.image_size(encoded) == (90, 120)


def test_damage_anywhere_in_a_jpeg_is_pillows_matter():
    encoded = saved(smooth(), "JPEG")
    rest = encoded.index(b"\xff\xda") + 14
    for part in (10, 50, 95):
        at = rest + (len(encoded) - rest) * part // 100
        damaged = encoded[:at] + b"\xff\xd9" + encoded[at + 2 :]
        np.testing.assert_array_equal(decode.decode(damaged, 3), decode.decode_with_pillow(damaged, 3))
        with pytest.raises(OSError):
            decode.decode(encoded[:at], 3)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "AVIF"])
def test_other_formats(kind):
    image = smooth()
    got = decode.decode(saved(image, kind, **({"quality": 95} if kind == "AVIF" else {})), 3)
    assert abs(got.astype(int) - image).mean() <= (3 if kind == "AVIF" else 0)
    gray = decode.decode(saved(image[..., 0], "PPM"), 1)  # .pgm
    np.testing.assert_array_equal(gray[..., 0], image[..., 0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed_where_wanted(orientation, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[decode.EXIF_ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"subsampling": 0, "quality": 100} if kind == "JPEG" else {}
    encoded = saved(smooth(), kind, exif=exif, **options)
    with Image.open(io.BytesIO(encoded)) as image:
        want = np.asarray(ImageOps.exif_transpose(image))
        plain = np.asarray(image)
    got = decode.decode(encoded, 3, exif=True)
    assert got.shape == want.shape and abs(got.astype(int) - want).max() <= 1
    assert decode.image_size(encoded, exif=True) == want.shape[:2]
    assert abs(decode.decode(encoded, 3).astype(int) - plain).max() <= 1  # torchvision and timm do not turn them
    assert decode.image_size(encoded) == (90, 120)


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def n_channel_files(image):
    """Every way of writing (H, W, C)."""
    planes = np.moveaxis(image, -1, 0)
    yield "npy", npy(image)
    yield "samples", tiff(image, planarconfig="contig", photometric="minisblack")
    yield "planes", tiff(planes, planarconfig="separate", photometric="minisblack")
    yield "pages", tiff(planes, photometric="minisblack")
    pages = [Image.fromarray(plane) for plane in planes]
    yield "pages of Pillow", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])


@pytest.mark.parametrize("channels", [2, 4, 5, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_number_of_channels(channels, dtype):
    image = noise(20, 31, channels, dtype=dtype, top=np.iinfo(dtype).max + 1)
    want = image if dtype == np.uint8 else image >> 8
    for name, encoded in n_channel_files(image):
        np.testing.assert_array_equal(decode.decode(encoded, channels), want, err_msg=name)
        assert decode.image_size(encoded) == (20, 31), name
        with pytest.raises(ValueError, match=f"{channels} channels where"):
            decode.decode(encoded, 6)
    np.testing.assert_array_equal(decode.decode(saved(noise(20, 31, 4)), 4), noise(20, 31, 4))  # RGBA as it is
    with pytest.raises(ValueError, match=r"3 channels where data\.channels=5"):
        decode.decode(saved(smooth()), 5)
    with pytest.raises(ValueError, match="an array of float32"):
        decode.decode(npy(image.astype(np.float32)), channels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_large_files_of_any_format_are_read_alike(kind):
    pixels = 190_000_000
    encoded = saved(Image.new("L", (19_000, 10_000)), kind)
    assert decode.image_size(encoded) == (10_000, 19_000)
    assert decode.decode(encoded, 1).size == pixels


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_what_claims_more_pixels_than_can_be_is_not_read(kind, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 5000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)
    with pytest.raises(Image.DecompressionBombError):
        decode.decode(saved(smooth(), kind), 3)


def test_reasons_have_no_address_in_memory():
    for content in (b"rubbish", b"\x89PNG\r\n", b"GIF89a", b"\xff\xd8\xff\xd9", b"II*\0", b"\x93NUMPY"):
        with pytest.raises(Exception) as caught:
            decode.decode(content, 3)
        reason = decode.reason_of(caught.value)
        assert reason and "0x" not in reason and "\n" not in reason
    assert (
        decode.reason_of(OSError("<_io.BytesIO object at 0x7f> is short")) == "OSError: <_io.BytesIO object> is short"
    )


# Of an image whose bands are all 100, by the definition of each mode: (gray, (red, green, blue)).
SHOWN = {
    "1": (255, (255, 255, 255)),
    "L": (100, (100, 100, 100)),
    "LA": (194, (194, 194, 194)),  # 255 + (100 - 255) * 100 / 255
    "P": (18, (10, 20, 30)),  # the palette's color 100
    "RGB": (100, (100, 100, 100)),
    "RGBA": (194, (194, 194, 194)),
    "CMYK": (94, (94, 94, 94)),  # 255 * (1 - 100 / 255) ** 2
    "LAB": (78, (0, 106, 137)),  # skimage.color.lab2rgb of (39.2, 100, 100)
    "I;16": (100, (100, 100, 100)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", SHOWN)
def test_every_mode_of_a_tiff_has_its_values(mode, channels):
    bands = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "LAB": 3}.get(mode, 1)
    value = 100 * 256 if mode == "I;16" else 100
    image = Image.new(mode, (6, 5), value if bands == 1 else (100,) * bands)
    if mode == "P":
        image.putpalette([10, 20, 30] * 256)
    pixels = decode.decode(saved(image, "TIFF"), channels)
    assert pixels.shape == (5, 6, channels)
    want = SHOWN[mode][1] if channels == 3 else SHOWN[mode][:1]
    assert abs(pixels.astype(int) - want).max() <= 1
