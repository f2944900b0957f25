"""Boxes on the device: RoIAlign in closed form, covered pixels, overlap; the reference values catch mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskcl_jax.ops import regions
from maskcl_jax.verify import verify_file
from maskcl_jax.verify.__main__ import SHIPPED
from maskcl_jax.views import boxes


def test_roi_align_reads_a_plane_at_the_center_of_each_bin():
    """Of f(x, y) = 3 x - 2 y + 1 over the cells, in maps that are not square and with several boxes each."""
    down, across = np.mgrid[:6, :9].astype(np.float32)
    maps = np.stack([3 * across - 2 * down + 1, across], axis=-1)[None] * np.array([1.0, -2.0])[:, None, None, None]
    rois = np.array([[[8, 8, 40, 32], [16.5, 6, 31, 9.25], [20, 10, 50, 40]]] * 2, np.float32)
    rois[1] += 4
    out = jax.jit(lambda m, r: regions.roi_align(m, r, scale=1 / 8, size=3))(jnp.asarray(maps), rois)
    assert out.shape == (2, 3, 3, 3, 2)
    for image, sign in enumerate((1.0, -2.0)):
        for roi, got in zip(rois[image] / 8 - 0.5, out[image], strict=True):
            x, y = (roi[i] + (roi[i + 2] - roi[i]) * (np.arange(3) + 0.5) / 3 for i in (0, 1))
            want = np.stack(np.broadcast_arrays(3 * x[None] - 2 * y[:, None] + 1, x[None]), axis=-1)
            np.testing.assert_allclose(got, sign * want, rtol=1e-5, atol=1e-5)
    mean = regions.roi_mean(jnp.asarray(maps), rois, scale=1 / 8, size=3)
    np.testing.assert_allclose(mean, out.mean(axis=(2, 3)), rtol=1e-5, atol=1e-5)


def test_roi_align_outside_of_the_map_is_zero():
    maps = jnp.ones((1, 4, 4, 1))
    far, half = [-80.0, 0.0, -48.0, 32.0], [-16.0, 0.0, 0.0, 32.0]  # cells of 8 pixels: two of them, half within reach
    out = regions.roi_mean(maps, jnp.array([[far, half]]), scale=1 / 8, size=4)
    np.testing.assert_allclose(out[0, :, 0], [0.0, 0.25], atol=1e-6)


def without_half_a_cell(monkeypatch):
    right = regions.axis_weights
    monkeypatch.setattr(
        regions,
        "axis_weights",
        lambda shape, boxes, scale, **kw: right(shape, boxes + 0.5 / scale, scale=scale, **kw),
    )


def not_clamped(monkeypatch):
    monkeypatch.setattr(regions.jnp, "clip", lambda x, low, high: x)


def never_mirrored(monkeypatch):
    right = boxes.in_view
    monkeypatch.setattr(
        boxes, "in_view", lambda found, crop, size: right(found, crop * np.array([1, 1, 1, 1, 0]), size)
    )


def rounded_up(monkeypatch):
    right = regions.pixels_in
    monkeypatch.setattr(regions, "pixels_in", lambda found, size: right(jnp.ceil(found), size))


@pytest.mark.parametrize(
    ("name", "mistake", "seen_in"),
    [
        ("roi_align", without_half_a_cell, "outputs/roi_mean_7x7"),
        ("roi_align", not_clamped, "grads/features_7x7"),
        ("boxes", never_mirrored, "outputs/key_boxes"),
        ("boxes", rounded_up, "outputs/query_mask_area"),
    ],
)
def test_a_mistake_is_seen(name, mistake, seen_in, monkeypatch):
    mistake(monkeypatch)
    assert seen_in in [check.name for check in verify_file(SHIPPED / f"{name}.npz") if not check.passed]


def test_pixels_whose_center_lies_inside():
    covered = np.asarray(regions.pixels_in(jnp.array([[1.0, 0.5, 3.5, 2.6], [0.0, 0.0, 5.0, 4.0]]), (4, 5)))
    want = np.zeros((4, 5), bool)
    want[0:3, 1:3] = True  # column 3 has its center at 3.5: not below it
    np.testing.assert_array_equal(covered[0], want)
    assert covered[1].all()


def test_an_outline_is_the_rim_of_each_box():
    edge = np.asarray(regions.outline(jnp.array([[1.0, 1.0, 4.0, 5.0], [6.0, 0.0, 8.0, 2.0]]), (6, 8)))
    want = np.zeros((6, 8), bool)
    want[1:5, 1:4] = True
    want[2:4, 2] = False
    want[0:2, 6:8] = True
    np.testing.assert_array_equal(edge, want)


def test_overlap_is_intersection_over_union():
    ours = jnp.array([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 7.0]])
    theirs = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 3.0, 2.0]])
    np.testing.assert_allclose(regions.overlap(ours, theirs), [[1.0, 1 / 3, 0.0], [0.0, 0.0, 0.0]])
