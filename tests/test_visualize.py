"""Figures and their files."""

import numpy as np
import pytest
from PIL import Image

from maskcl_jax.training import visualize


def test_a_figure_has_every_image_in_its_place():
    red, ramp = np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 32, 32, 1), np.float32)
    red[..., 0] = 1.0
    ramp[1] = 0.5
    grid = visualize.grid({"red": red, "gray": ramp})
    cell, gap, title = 96, visualize.GAP, 16
    assert grid.shape == (title + gap + 2 * (cell + gap), gap + 2 * (cell + gap), 3)
    top = title + gap
    np.testing.assert_array_equal(grid[top : top + cell, gap : gap + cell], np.full((cell, cell, 3), [255, 0, 0]))
    second = grid[top + cell + gap : top + 2 * cell + gap, 2 * gap + cell : 2 * gap + 2 * cell]
    np.testing.assert_array_equal(second, np.full((cell, cell, 3), 128))
    assert (grid[:title] < 255).any()  # the titles


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_and_rows(channels):
    images = np.random.default_rng(0).random((10, 20, 40, channels))
    grid = visualize.grid({"x": images}, max_rows=3)
    assert grid.shape == (16 + 4 + 3 * (100 + 4), 4 + 200 + 4, 3)


def test_nan_is_black_and_two_channels_are_red_and_green():
    images = np.array([[[[np.nan, 1.0]]]])
    np.testing.assert_array_equal(visualize.to_rgb(images), [[[[0, 255, 0]]]])


def test_values_outside_0_to_1_are_clipped():
    np.testing.assert_array_equal(visualize.to_rgb(np.array([[[[-1.0, 0.5, 2.0]]]])), [[[[0, 128, 255]]]])


def test_a_file_is_whole_and_alone(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    visualize.save_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_long_title_does_not_run_into_the_next_column():
    black = np.zeros((1, 96, 96, 3))
    grid = visualize.grid({"reconstruction of what was never seen": black, "x": black})
    second = (grid.shape[1] - visualize.GAP) // 2 + visualize.GAP
    assert second > 2 * visualize.GAP + 96
    assert (grid[: visualize.TITLE, second - visualize.GAP : second] == 255).all()


def test_a_png_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path, image = tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8)
    visualize.save_png(path, image)

    def breaks(self, target, **options):
        target.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", breaks)
    with pytest.raises(OSError, match="disk full"):
        visualize.save_png(path, image + 1)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)


@pytest.mark.parametrize(
    ("size", "title"), [((32, 32), "x"), ((30, 50), "x"), ((112, 100), "a title that is wider than images")]
)
def test_a_figure_comes_apart_again(size, title):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, *size, 3), dtype=np.uint8)
    columns = {f"{title} {i}": column / 255 for i, column in enumerate(images)}
    figure = visualize.grid(columns)
    np.testing.assert_array_equal(visualize.cells(figure, 3, size), images)
    assert visualize.cells(figure, 3, (size[0] + 1, size[1])) is None
    assert visualize.cells(figure[:, :-1], 3, size) is None
