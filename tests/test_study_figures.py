"""What is computed from the outcomes of a study, and shown of them: means, intervals, tables, plots."""

import numpy as np
import pytest

from maskcl_jax.evaluate import segment
from maskcl_jax.evaluate.results import pack_bits, pack_counts, unpack_bits, unpack_counts
from maskcl_jax.study import plots, providers, summary, tables


def rows(entry, outcomes):
    """Figures of one entry, a row for each seed."""
    figures = []
    for seed, right in enumerate(outcomes):
        right = np.asarray(right, bool)
        row = {"entry": entry, "seed": seed, "figure": "k-NN", "value": 100 * right.mean(), "n_test": len(right)}
        figures.append(row | {"correct": pack_bits(right)})
    return figures


def test_means_spreads_and_paired_intervals_are_those_of_the_textbook():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 50)) < 0.7, rng.random((3, 50)) < 0.5
    assert (unpack_bits(pack_bits(ours[0]), 50) == ours[0]).all()
    figures = rows("a", ours) + rows("b", theirs)
    (mean, *_) = summary.summary(figures, [])
    assert mean["mean"] == pytest.approx(100 * ours.mean())
    assert mean["std"] == pytest.approx((100 * ours.mean(axis=1)).std(ddof=1))
    (row,) = summary.comparisons(figures, (("a", "b"),))
    differences = 100 * (ours.mean(axis=1) - theirs.mean(axis=1))
    assert row["difference"] == pytest.approx(differences.mean())
    half = 4.302653 * differences.std(ddof=1) / np.sqrt(3)  # Student's t of 2 degrees of freedom, 97.5 %
    assert row["over_seeds"] == pytest.approx([differences.mean() - half, differences.mean() + half])
    each = 100 * (ours.astype(float) - theirs).mean(axis=0)
    half = 1.959964 * each.std(ddof=1) / np.sqrt(50)
    assert row["over_images"] == pytest.approx([each.mean() - half, each.mean() + half])


def test_the_interval_of_a_difference_of_mean_ious_is_that_of_resampled_images():
    """Against a bootstrap over test images, of which every sample has a mean IoU of its own."""
    rng = np.random.default_rng(0)
    labeled = rng.integers(0, 50, (150, 4)) * (rng.random((150, 4)) < 0.5)  # not every image shows every class
    labeled = np.pad(labeled, ((0, 0), (0, 1)))  # the last class is nowhere
    pixels = []
    for share in (0.7, 0.5):
        both = rng.binomial(labeled, np.clip(share + rng.normal(0, 0.2, (150, 1)), 0, 1))
        pixels.append(np.stack([labeled, both + rng.binomial(labeled - both, 0.5), both], axis=1))
        assert (unpack_counts(pack_counts(pixels[-1]), 150) == pixels[-1]).all()
    mious = [100 * segment.scores(counts.sum(axis=0))["miou"] for counts in pixels]
    figures = []
    for entry, counts, miou in zip("ab", pixels, mious, strict=True):
        figures.append({"entry": entry, "seed": 0, "figure": "mIoU", "value": miou, "n_test": 150})
        figures[-1]["pixels"] = pack_counts(counts)
    (row,) = summary.comparisons(figures, (("a", "b"),))
    low, high = row["over_images"]
    assert (low + high) / 2 == pytest.approx(mious[0] - mious[1]) == row["difference"]

    def difference(images):
        one, other = (100 * segment.scores(counts[images].sum(axis=0))["miou"] for counts in pixels)
        return one - other

    sampled = [difference(rng.integers(0, 150, 150)) for _ in range(2000)]
    assert [low, high] == pytest.approx(np.percentile(sampled, [2.5, 97.5]), abs=0.05 * (high - low))


def test_the_convergence_table_compares_at_equal_images_and_at_equal_time():
    curve = [{"step": step, "knn_accuracy": float(step)} for step in (0, 50, 100)]
    run_row = {"seed": 0, "images": 800, "steps": 100, "curve": curve}
    slow, fast = ({"entry": name, "cpu_seconds_per_image": cost} for name, cost in (("slow", 0.02), ("fast", 0.01)))
    text = tables.convergence_table({"runs": [run_row | slow, run_row | fast]})
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[3:8]] for line in text.splitlines()[2:]}
    assert cells["slow"] == ["12.5", "25.0", "50.0", "100.0", "50.0"]  # half as many images in the time of `fast`
    assert cells["fast"] == ["12.5", "25.0", "50.0", "100.0", "100.0"]


def test_plots_show_every_entry_and_every_curve(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[plots]'")
    figures = rows("trained", [[1, 1, 0, 0], [1, 0, 0, 0]]) + rows("raw pixels", [[1, 0, 0, 0]])
    curve = [{"step": step, "knn_accuracy": float(step)} for step in (0, 50, 100)]
    run_row = {"entry": "trained", "images": 800, "steps": 100, "curve": curve, "cpu_seconds_per_image": 0.01}
    content = {"entries": [{"name": "trained"}, {"name": "raw pixels"}], "figures": figures, "runs": [run_row]}
    drawn = [path.read_text() for path in plots.draw(content, tmp_path)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["convergence.svg", "figures.svg"]
    assert all(text in drawn[0] for text in ("trained", "raw pixels", "k-NN, %"))
    assert "CPU seconds of the steps" in drawn[1]
    assert all(plots.digest(content) in text and plots.digest(content | {"runs": []}) not in text for text in drawn)


def test_a_difference_has_its_intervals_beside_it():
    row = {"entry": "a", "other": "b", "figure": "k-NN", "seeds": [0, 1], "difference": 0.92}
    row |= {"over_images": [-0.51, 2.3], "over_seeds": [-1.04, 2.8]}
    summary = [{"figure": figure} for figure in ("k-NN", "linear", "linear 1%")]  # the order of the columns
    compared = [row | {"figure": "linear", "over_seeds": None}, row]
    text = tables.comparisons_table({"summary": summary, "comparisons": compared})
    first, last = ([cell.strip() for cell in text.splitlines()[line].split("|")[1:-1]] for line in (0, -1))
    assert first == ["points", "k-NN", "linear", "seeds"]
    assert last == ["a - b", "+0.9 (-0.5 to +2.3; -1.0 to +2.8)", "+0.9 (-0.5 to +2.3)", "2"]


def test_providers_are_judged_by_where_objects_are():
    objects = np.zeros((2, 4, 4))
    objects[:, :3, :3] = 1.0  # nine of sixteen cells
    objects[1, 0, 0] = 0.4  # not covered by half
    found = providers.scores(objects, objects)
    assert found["iou"] == pytest.approx((9 / 9 + 8 / 9) / 2)  # the cell counts as salient, but as no object
    assert found["precision"] == 1.0
    assert found["gain"] == pytest.approx(((1 - 9 / 16) + (1 - 8.4 / 16)) / 2)
    many = np.tile(objects[:1], (500, 1, 1))
    found = providers.scores(np.ones((500, 4, 4)), many)
    assert found["iou"] == pytest.approx(9 / 16)  # every cell is salient
    assert abs(found["gain"]) < 2 * found["gain_half"]  # equal cells are ranked at random
