"""What a report computes: neighbors, maps, thinned curves, frames, names."""

import sys
import types

import numpy as np
import pytest
from stand_ins import umap_like

from maskcl_jax.errors import UserError
from maskcl_jax.report import charts, embed, film, maps, page, record

RNG = np.random.default_rng(0)


def images(features, labels=None) -> embed.Images:
    """Images of which only the features matter."""
    features = np.asarray(features, np.float32)
    labels = np.zeros(len(features), int) if labels is None else np.asarray(labels)
    blank = np.zeros((len(features), 4, 4, 3), np.uint8)
    return embed.Images(blank, features, labels, np.arange(len(features)))


def test_neighbors_are_sorted_by_cosine_and_not_the_image_itself():
    held = images([[1, 0], [0, 2], [3, 1], [1, 1]])
    nearest, cosines = embed.neighbors(held, held, np.array([0]))
    assert nearest.tolist() == [[2, 3, 1]]
    np.testing.assert_allclose(cosines, [[3 / np.sqrt(10), 1 / np.sqrt(2), 0]], atol=1e-6)
    nearest, cosines = embed.neighbors(held, images([[2, 0], [0, -1]]), np.array([1]))
    assert nearest.tolist() == [[0, 1]]
    np.testing.assert_allclose(cosines, [[0, -1]], atol=1e-6)


def test_queries_are_of_different_classes():
    chosen = embed.spread_over_classes(np.repeat(np.arange(10), 7), 5)
    assert (chosen // 7).tolist() == [0, 2, 4, 6, 8]
    assert embed.spread_over_classes(np.full(6, -1), 3).tolist() == [0, 2, 4]


def test_pca_is_that_of_scikit_learn():
    from sklearn.decomposition import PCA

    values = RNG.standard_normal((30, 5)) * [5, 3, 1, 1, 1]
    ours, explained = maps.pca(values.astype(np.float32))
    theirs = PCA(2).fit(values)
    np.testing.assert_allclose(explained, theirs.explained_variance_ratio_, rtol=1e-4)
    for mine, other in zip(ours.T, maps.unit_square(theirs.transform(values)).T, strict=True):
        assert min(abs(mine - other).max(), abs(mine - (1 - other)).max()) < 1e-4


def test_umap_compares_by_the_cosine_and_knows_few_images(monkeypatch):
    """With the real umap-learn: `pip install umap-learn`; it compiles for a minute, so a stand-in takes the call."""
    made = []
    monkeypatch.setitem(sys.modules, "umap", umap_like(made))
    values = RNG.standard_normal((30, 5)).astype(np.float32)
    assert maps.umap_problem() == ""
    np.testing.assert_array_equal(maps.umap(values), maps.unit_square(values[:, ::-1][:, :2]))
    maps.umap(values[:9])
    options = {"metric": "cosine", "random_state": 0, "n_jobs": 1}
    assert made == [options | {"n_neighbors": 15}, options | {"n_neighbors": 8}]


def test_a_long_curve_keeps_its_means():
    points = [(i, float(i % 4)) for i in range(4000)]
    thinned = charts.thin(points)
    assert len(thinned) == charts.MOST
    assert {value for _, value in thinned} == {1.5}
    assert thinned[-1][0] == 3999
    assert charts.thin([]) == []


def test_runs_of_other_steps_share_an_axis():
    chart = charts.chart("Loss", "", [("a", 0, [(1, 1.0), (3, 2.0)]), ("b", 1, [(2, 5.0)])])
    assert chart["x"] == [1, 2, 3]
    assert [series["values"] for series in chart["series"]] == [[1.0, None, 2.0], [None, 5.0, None]]


def test_frames_are_the_first_the_last_and_some_between():
    assert list(film.spaced(3, 12)) == [0, 1, 2]
    assert film.spaced(100, 4) == [0, 33, 66, 99]


@pytest.mark.parametrize(
    ("path", "preset", "named"),
    [
        ("DIR/cats/", "tiny_imagenet", "cats"),
        ("/data/birds/train", "folder", "birds"),
        ("/data/birds/**/train-*.tar", "folder", "birds"),
        ("../..", "folder", "folder"),
        ("/runs/mine/data.npz", "npz", "npz"),
        (None, "imagenet", "imagenet"),
        ("", "", "folder"),
    ],
)
def test_a_page_names_the_folder_of_the_images_and_not_the_preset_of_another_data_set(path, preset, named):
    config = {"data.path": path, "preset": preset, "data.source": "folder"}
    assert page.data_name(types.SimpleNamespace(config=config, workdir="/runs/mine")) == named


def test_names_are_as_short_as_they_can_be():
    assert record.names_of(["runs/a", "runs/b"]) == ["a", "b"]
    assert record.names_of(["x/run", "y/run"]) == ["x/run", "y/run"]
    with pytest.raises(UserError, match=r"runs/\.\./runs/a is given twice"):
        record.names_of(["runs/a", "runs/../runs/a"])
