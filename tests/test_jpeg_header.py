"""JPEGs decoded no further than needed: the same pixels, and which files allow it."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from maskcl_jax.data import pixels
from maskcl_jax.data.jpeg_header import with_height


def noisy_jpeg(subsampling, height=75, width=101):
    """A JPEG whose every row differs from its neighbours, in colours too."""
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if subsampling == "gray":
        return simplejpeg.encode_jpeg(noise[..., :1].copy(), 90, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(noise, 90, "RGB", subsampling)


def saved(**options):
    file = io.BytesIO()
    Image.open(io.BytesIO(noisy_jpeg("420"))).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "gray"])
def test_the_top_of_a_jpeg_is_that_of_the_whole(subsampling, channels):
    encoded = noisy_jpeg(subsampling)
    whole = pixels.decode(encoded, channels)
    for rows in range(1, len(whole) + 1):
        top = pixels.decode_top(encoded, channels, rows)
        assert len(top) == min(rows + pixels.BELOW, len(whole))  # no more was decoded
        np.testing.assert_array_equal(top[:rows], whole[:rows])


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_that_cannot_be_cut_short_is_decoded_as_a_whole(options):
    encoded = saved(**options)
    assert with_height(encoded, 20) is None
    top = pixels.decode_top(encoded, 3, 20)
    np.testing.assert_array_equal(top, pixels.decode(encoded, 3))
    assert len(top) == 75


def test_damage_is_pillows_where_it_shows_and_unseen_below():
    encoded = saved()
    rest = encoded.index(b"\xff\xda") + 14
    early, late = (rest + (len(encoded) - rest) * part // 100 for part in (10, 90))
    above = encoded[:early] + b"\xff\xd9" + encoded[early + 2 :]
    below = encoded[:late] + b"\xff\xd9" + encoded[late + 2 :]
    np.testing.assert_array_equal(pixels.decode_top(above, 3, 40), pixels.decode_with_pillow(above, 3))
    np.testing.assert_array_equal(pixels.decode_top(below, 3, 40)[:40], pixels.decode(encoded, 3)[:40])


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", ["short", "whole", "comment", "progressive", "png", "damaged above", "damaged"])
def test_channels_come_in_reverse_where_asked(kind, channels):
    encoded, rows = saved(progressive=kind == "progressive"), 75 if kind in ("whole", "damaged") else 20
    if kind == "png":
        file = io.BytesIO()
        Image.open(io.BytesIO(encoded)).save(file, "PNG")
        encoded = file.getvalue()
    if kind == "comment":  # behind the pixels: a whole file, that is not cut short
        encoded = encoded[:-2] + b"\xff\xfe\x00\x04hi" + encoded[-2:]
        assert len(pixels.decode_top(encoded, channels, rows)) == 75
    if "damaged" in kind:
        middle = encoded.index(b"\xff\xda") + 200
        encoded = encoded[:middle] + b"\xff\xd9" + encoded[middle + 2 :]
    want = pixels.decode_top(encoded, channels, rows).copy()
    np.testing.assert_array_equal(pixels.decode_top(encoded, channels, rows, backwards=True), want[..., ::-1])


def test_a_header_that_is_not_whole_or_of_several_scans_keeps_its_height():
    encoded = saved()
    scan = encoded.index(b"\xff\xda")
    assert with_height(encoded, 20) is not None
    assert all(with_height(encoded[:cut], 20) is None for cut in range(scan + 4))
    assert with_height(encoded[: scan + 4] + b"\x01" + encoded[scan + 5 :], 20) is None  # one of three colours
