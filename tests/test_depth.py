"""Images of more than 8 bits a sample, or of none: the values that come out, of files written without Pillow."""

import io
import struct
import zlib

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from absl import logging
from PIL import Image

from maskcl_jax.data import decode, depth

GRAY, COLOR, GRAY_ALPHA, COLOR_ALPHA = 0, 2, 4, 6  # PNG's color types


def png(pixels, color, *, bits=16, transparent=()) -> bytes:
    """A PNG of (H, W) or (H, W, C) numbers, by the format's description."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1).astype(">u2" if bits == 16 else "u1")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    if transparent:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def tiff(pixels, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def noise(*shape, top=65536, seed=0):
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint16)


def over_white(color, alpha):
    """8 bits laid over white, before rounding."""
    return 255 + (color.astype(float) - 255) * alpha.astype(float) / 255


@pytest.fixture
def nothing_said(monkeypatch):
    """What is said once has not been said."""
    monkeypatch.setattr(logging, "_log_counter_per_token", {}, raising=False)


def of_16_bits(pixels):
    """Every way of writing (H, W, 3) of 16 bits."""
    height, width, _ = pixels.shape
    yield "PNG", png(pixels, COLOR)
    yield "TIFF", tiff(pixels, photometric="rgb")
    yield "TIFF, big-endian", tiff(pixels, photometric="rgb", byteorder=">")
    yield "TIFF, compressed", tiff(pixels, photometric="rgb", compression="zlib")
    yield "TIFF of planes", tiff(np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    yield "TIFF of imageio", imageio.imwrite("<bytes>", pixels, extension=".tif")
    yield "PPM", f"P6 {width} {height} 65535\n".encode() + pixels.astype(">u2").tobytes()


def test_of_16_bits_the_high_byte_is_taken():
    pixels = noise(8, 9, 3)
    for name, encoded in of_16_bits(pixels):
        apart = 1 if name == "PPM" else 0  # Pillow rounds there
        assert abs(decode.decode(encoded, 3).astype(int) - (pixels >> 8)).max() <= apart, name
    gray = {
        "PNG": png(pixels[..., 0], GRAY),
        "TIFF": tiff(pixels[..., 0]),
        "TIFF, big-endian": tiff(pixels[..., 0], byteorder=">"),
        "TIFF, white is 0": tiff(65535 - pixels[..., 0], photometric="miniswhite"),
        "PGM": b"P5 9 8 65535\n" + pixels[..., 0].astype(">u2").tobytes(),
    }
    for name, encoded in gray.items():
        for channels in (1, 3):
            want = np.repeat(pixels[..., :1] >> 8, channels, axis=-1)
            np.testing.assert_array_equal(decode.decode(encoded, channels), want, err_msg=name)
    file = io.BytesIO()
    np.save(file, pixels.astype(">u2"))
    np.testing.assert_array_equal(decode.decode(file.getvalue(), 3), pixels >> 8)


@pytest.mark.parametrize("factor", [256, 257])
def test_8_bits_that_were_stretched_to_16_are_what_they_were(factor):
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(decode.decode(png(pixels * factor, GRAY), 1)[..., 0], pixels)


@pytest.mark.parametrize("color, channels", [(GRAY_ALPHA, 2), (COLOR_ALPHA, 4)])
def test_alpha_of_16_bits_is_laid_over_white(color, channels):
    pixels = noise(8, 9, channels)
    high = pixels >> 8
    want = over_white(high[..., :-1], high[..., -1:])
    extra = {"extrasamples": ["unassalpha"], "photometric": "rgb" if channels == 4 else "minisblack"}
    for encoded in (png(pixels, color), tiff(pixels, planarconfig="contig", **extra)):
        assert abs(decode.decode(encoded, 3) - want).max() <= 1
    extra["extrasamples"] = ["assocalpha"]
    multiplied = np.concatenate([pixels[..., :-1] * (pixels[..., -1:] / 65535), pixels[..., -1:]], axis=-1)
    encoded = tiff(multiplied.astype(np.float32) / 65535, planarconfig="contig", **extra)
    solid = high[..., -1] > 128  # where rounding is not magnified
    assert abs(decode.decode(encoded, 3) - want)[solid].max() <= 3


def test_of_16_bits_one_color_is_transparent_and_none_that_is_close():
    pixels = noise(8, 9, 3)
    pixels[0, 0], pixels[0, 1] = (1000, 2000, 3000), (1001, 2000, 3000)
    want = pixels >> 8
    want[0, 0] = 255
    encoded = png(pixels, COLOR, transparent=(1000, 2000, 3000))
    np.testing.assert_array_equal(decode.decode(encoded, 3), want)
    assert decode.decode(encoded, 1)[0, 0] == 255 and decode.decode(encoded, 1)[0, 1] < 10
    # An image that Pillow has opened has the high bytes only.
    np.testing.assert_array_equal(decode.pixels_of(Image.open(io.BytesIO(encoded)), 3)[1:], want[1:])
    wrong = Image.new("RGB", (1, 1), (1000 & 255, 2000 & 255, 3000 & 255))  # what Pillow takes that color for
    wrong.info["transparency"] = (1000, 2000, 3000)
    assert decode.pixels_of(wrong, 3)[0, 0].tolist() == [232, 208, 184]
    gray = noise(8, 9)
    gray[0, :2] = 1000, 1001
    got = decode.decode(png(gray, GRAY, transparent=(1000,)), 1)[..., 0]
    assert got[0, :2].tolist() == [255, 3] and (got[1:] == gray[1:] >> 8).all()


def of_12_bits():
    """Every way of writing 12 bits in 16."""
    pixels = noise(8, 9, 4, top=4096)
    yield from of_16_bits(pixels[..., :3])
    yield "gray", png(pixels[..., 0], GRAY)
    yield "gray and alpha", png(pixels[..., :2], GRAY_ALPHA)
    yield "color and alpha", png(pixels, COLOR_ALPHA)
    yield "one color transparent", png(pixels[..., :3], COLOR, transparent=(1, 2, 3))
    yield "gray TIFF", tiff(pixels[..., 0])


@pytest.mark.parametrize("name, encoded", [pytest.param(*case, id=case[0]) for case in of_12_bits()])
def test_12_bits_in_16_are_warned_of(name, encoded, caplog, nothing_said):
    decode.decode(encoded, 3)
    decode.decode(encoded, 3)
    assert caplog.text.count("perhaps its data have 12 bits") == 1


@pytest.mark.parametrize("name, encoded", [pytest.param(*case, id=case[0]) for case in of_16_bits(noise(8, 9, 3))])
def test_16_bits_are_not_warned_of(name, encoded, caplog, nothing_said):
    decode.decode(encoded, 3)
    assert not caplog.text


def test_12_bits_that_are_declared_are_scaled(caplog, nothing_said):
    """Of a PGM by its largest value, of a TIFF by the bits of a sample, two samples in three bytes."""
    pixels = noise(4, 6, top=4096)
    encoded = b"P5 6 4 4095\n" + pixels.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode.decode(encoded, 1)[..., 0], np.round(pixels / 4095 * 65535).astype(int) >> 8)
    first, second = pixels.reshape(-1, 2).astype(int).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    tags = [(256, 6), (257, 4), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 4), (279, len(packed))]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    encoded = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + ifd + bytes(4)
    np.testing.assert_array_equal(decode.decode(encoded, 1)[..., 0], pixels >> 4)
    assert not caplog.text


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_numbers_of_0_to_1_become_0_to_255(dtype):
    pixels = np.random.default_rng(0).random((8, 9, 4)).astype(dtype)
    pixels[0, 0], pixels[0, 1] = 0, 1
    want = np.round(pixels.astype(np.float32) * 255)
    np.testing.assert_array_equal(decode.decode(tiff(pixels[..., 0]), 1), want[..., :1])
    np.testing.assert_array_equal(decode.decode(tiff(pixels[..., 0]), 3), np.repeat(want[..., :1], 3, axis=-1))
    for options in ({"photometric": "rgb"}, {"photometric": "minisblack", "planarconfig": "contig"}):
        np.testing.assert_array_equal(decode.decode(tiff(pixels[..., :3], **options), 3), want[..., :3])
    planes = tiff(np.moveaxis(pixels[..., :3], -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode.decode(planes, 3), want[..., :3])
    four = tiff(pixels, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(decode.decode(four, 4), want)
    assert decode.image_size(four) == decode.image_size(planes) == (8, 9)
    if dtype == np.float32:
        pfm = b"Pf\n9 8\n-1.0\n" + pixels[::-1, :, 0].tobytes()  # from the bottom up
        np.testing.assert_array_equal(decode.decode(pfm, 1), want[..., :1])


@pytest.mark.parametrize(
    "pixels, reason",
    [
        (np.full((8, 9), 254.5, np.float32), r"lie in 0\.\.254\.5: they must lie in 0\.\.1, or write uint8"),
        (np.full((8, 9, 3), 2.5, np.float32), r"lie in 0\.\.2\.5: they must lie in 0\.\.1"),
        (np.full((8, 9), -0.5, np.float64), r"lie in -0\.5\.\.0: they must"),
        (np.full((8, 9), np.nan, np.float32), r"lie in nan\.\.nan: they must"),
        *((np.full((8, 9), 90, dtype), "no known white") for dtype in ("i1", "i2", "i4", "u4", "i8", "u8")),
        (np.full((8, 9, 3), 90, np.int16), "no known white"),
        (np.full((8, 9, 4), 0.5, np.float32), "of 4 channels"),
    ],
)
def test_values_whose_white_is_unknown_are_refused(pixels, reason):
    several = {"photometric": "minisblack", "planarconfig": "contig"} if pixels.ndim == 3 else {}
    for channels in (1, 3):
        with pytest.raises(ValueError, match=reason) as caught:
            decode.decode(tiff(pixels, **several), channels)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("tag, code, count", [(258, 258, 1 << 20), (258, 60000, 1), (262, 262, 1 << 20)])
def test_a_tiff_that_has_lost_tags_is_refused(channels, tag, code, count):
    """Of a tag that points behind the end, or is another, tifffile takes the default: 1 bit, or 0 for white."""
    encoded = tiff(noise(8, 9, channels), photometric="minisblack", planarconfig="contig")
    assert decode.decode(encoded, channels).shape == (8, 9, channels)
    entry = encoded.index(struct.pack("<HH", tag, 3))
    lost = encoded[:entry] + struct.pack("<HHII", code, 3, count, 1) + encoded[entry + 12 :]
    with pytest.raises(ValueError, match="has lost some of its tags"):
        decode.decode(lost, channels)


def test_32_bits_of_pillow_are_16():
    assert decode.pixels_of(Image.new("I", (2, 1), 513), 1)[0, 0, 0] == 2
    for value in (-1, 65536):
        with pytest.raises(ValueError, match=r"they must lie in 0\.\.65535"):
            decode.pixels_of(Image.new("I", (2, 1), value), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_by_whatever_reads_it(orientation, monkeypatch):
    """Pillow reads 8 bits, tifffile floating point numbers and any number of channels."""
    pixels = noise(4, 6, 3, top=256).astype(np.uint8)
    tag = {"extratags": [(274, 3, 1, orientation, True)]}
    want = decode.decode(tiff(pixels, photometric="rgb", **tag), 3)
    assert want.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))
    floating = tiff(pixels / np.float32(255), photometric="rgb", **tag)
    np.testing.assert_array_equal(decode.decode(floating, 3), want)
    five = tiff(pixels[..., [0, 1, 2, 0, 1]], photometric="minisblack", planarconfig="contig", **tag)
    np.testing.assert_array_equal(decode.decode(five, 5)[..., :3], want)
    monkeypatch.setattr(depth, "_turned_planes", None)  # the header says the size
    planes = tiff(np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate", **tag)
    assert decode.image_size(floating) == decode.image_size(five) == decode.image_size(planes) == want.shape[:2]


def test_a_tiff_that_claims_too_many_pixels_is_not_read(monkeypatch):
    encoded = tiff(np.zeros((100, 100, 3), np.float32), photometric="rgb")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)
    with pytest.raises(Image.DecompressionBombError):
        decode.decode(encoded, 3)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_empty_file_is_called_empty(channels):
    for attempt in (lambda: decode.decode(b"", channels), lambda: decode.image_size(b"")):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert decode.reason_of(caught.value) == "ValueError: the file is empty (0 bytes)"
