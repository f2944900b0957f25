"""How verify compares: errors by their scale, and nothing passes that was not compared."""

import json
import types

import numpy as np
import pytest

from maskcl_jax.errors import UserError
from maskcl_jax.verify import report


def case(kind: str, limit: float = 1e-3):
    return types.SimpleNamespace(limit=lambda key: (kind, limit))


@pytest.mark.parametrize(
    ("kind", "error"), [("relative", 0.02 / np.sqrt(5)), ("of peak", 0.02 / 3), ("absolute", 0.02), ("exact", 0.02)]
)
def test_an_error_is_measured_by_its_scale(kind, error):
    theirs = np.array([1.0, -3.0])
    check = report.compare("outputs/x", theirs + np.array([0.0, 0.02]), theirs, case(kind))
    assert check.error == pytest.approx(error)
    assert not check.passed
    assert report.compare("outputs/x", theirs, theirs, case(kind)).passed


def test_of_a_summary_each_number_has_its_own_scale():
    theirs = np.concatenate([[10.0, 5.0, 20.0], np.full(16, 2.0)])
    for index, scale in ((0, 20.0), (1, 5.0), (2, 20.0), (3, 2.0), (18, 2.0)):
        ours = theirs.copy()
        ours[index] += 0.1
        assert report.stats_error(ours, theirs) == pytest.approx(0.1 / scale)


@pytest.mark.parametrize("ours", [None, np.ones(3), np.full(2, np.nan)])
def test_what_is_missing_of_another_shape_or_nan_fails(ours):
    check = report.compare("outputs/x", ours, np.ones(2), case("relative", 1e9))
    assert not check.passed
    assert str(check).startswith("FAIL")


def test_an_array_of_zeros_is_compared_absolutely():
    assert report.compare("outputs/x", np.full(2, 0.5), np.zeros(2), case("relative")).error == 0.5


def test_a_file_with_nothing_to_compare_is_refused(tmp_path, monkeypatch):
    empty = report.cases.Case(compute=lambda config, weights, inputs: {}, limits=())
    monkeypatch.setitem(report.CASES, "empty", empty)
    np.savez(tmp_path / "empty.npz", config=json.dumps({"method": "empty"}), **{"weights/w": np.ones(2)})
    with pytest.raises(UserError, match=r"empty\.npz holds nothing to compare: no array under outputs/"):
        report.verify_file(tmp_path / "empty.npz")
