"""Studies as they are written: the order of their pieces, what is chosen of them, and what is refused."""

import numpy as np
import pytest
from helpers.studies import TWO
from helpers.tiny import ROOT

from maskcl_jax.errors import UserError
from maskcl_jax.study import Data, Entry, Evaluation, Study, definition, pieces, subset

STUDIES = sorted((ROOT / "studies").glob("*.py"))


def test_seeds_run_one_after_the_other_and_late_evaluations_last():
    late = Evaluation("lowshot:finetune", late=True)
    study = Study("?", "none", entries=TWO.entries[:2], evaluations=(Evaluation("knn"), late), seeds=(0, 1))
    order = [(piece.seed, piece.entry, piece.words[2].split("=")[1]) for piece in pieces.pieces_of(study)]
    early = [(seed, name, "knn") for seed in (0, 1) for name in ("first", "second")]
    assert order == early + [(seed, name, "lowshot:finetune") for seed, name, _ in early]
    chosen = pieces.pieces_of(study, only=("second",), seeds=(1,))
    assert {(piece.entry, piece.seed) for piece in chosen} == {("second", 1)}


def test_an_entry_can_be_chosen_by_its_folder_as_names_have_commas():
    study = Study("?", "none", entries=(Entry("MAE, rate x3", "mae"), *TWO.entries), evaluations=TWO.evaluations)
    assert [piece.entry for piece in pieces.pieces_of(study, only=("mae-rate-x3",))] == ["MAE, rate x3"]
    with pytest.raises(UserError, match="--only='mae-rate' is unknown: use one of mae-rate-x3, first"):
        pieces.pieces_of(study, only=("mae rate",))


def test_another_command_is_another_piece():
    changed = Study("?", "none", entries=(Entry("first", "mae:synthetic", {"epochs": 3}),), evaluations=TWO.evaluations)
    (before, *_), (after, *_) = pieces.pieces_of(TWO), pieces.pieces_of(changed)
    assert before.command == after.command  # of the evaluation
    assert before.key != after.key


HEAD = "from maskcl_jax.study import *\ndef get_study(scale):\n    "
ENTRY = "Entry('a', 'mae', evaluations=(Evaluation('knn'),))"
BROKEN = {
    "def get_study(scale:\n": "SyntaxError",
    "x = 1\n": "has no get_study function",
    HEAD + "return 1 / 0\n": r"fails \(line 3\): ZeroDivisionError",
    HEAD + "raise SystemExit(3)\n": r"fails \(line 3\): SystemExit",
    HEAD + "return 3\n": "returns a int: it must return a Study",
    f"{HEAD}return Study('', '', entries=({ENTRY}, {ENTRY}))\n": "entry 'a' is there twice",
    HEAD + "return Study('', '', entries=(Entry('a', of='b'),))\n": "of='b' is no entry",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=BROKEN.values())
def test_a_broken_study_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        definition.load(str(path), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("a", "mae:nowhere"), "entry 'a': preset 'nowhere' is unknown"),
        (Entry("a", "mae", {"method.mask_ration": 0.5}), "entry 'a': .*mask_ration"),
        (Entry("a", "mae", {"method.mask_ratio": 2.0}), "entry 'a': .*mask_ratio"),
        (Entry("a", "mae", evaluations=(Evaluation("kmm"),)), "entry 'a': --protocol=kmm is unknown"),
        (Entry("a", "mae", evaluations=(Evaluation("knn", {"kk": 3}),)), "entry 'a': --config.kk is not a field"),
    ],
)
def test_what_a_command_would_refuse_is_refused_before_anything_runs(entry, message):
    study = Study("?", "none", entries=(entry,), evaluations=(Evaluation("knn"),))
    with pytest.raises(UserError, match=message):
        pieces.check(study, pieces.pieces_of(study))


@pytest.mark.parametrize("scale", definition.SCALES)
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_could_run(path, scale):
    study = definition.load(str(path), scale)
    queue = pieces.pieces_of(study)
    pieces.check(study, queue)
    assert all(str(ROOT) not in piece.command for piece in queue)
    for one, other in study.comparisons:
        shared = [protocols(study.entry(name).evaluations or study.evaluations) for name in (one, other)]
        assert shared[0] & shared[1], f"{one} and {other} have no figure in common"


def protocols(evaluations) -> set[str]:
    """The protocols of some evaluations: `all` runs three."""
    named = {evaluation.protocol for evaluation in evaluations}
    return named | ({"knn", "logistic", "lowshot"} if "all" in named else set())


def test_the_part_of_a_data_set_is_of_every_class_and_its_held_out_images_are_others():
    labels = np.repeat(np.arange(3), 20)
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images + 100, "test_labels": labels}
    small = subset.part(arrays, Data("x.npz", train_per_class=5, test_per_class=4))
    assert np.bincount(small["train_labels"]).tolist() == [5, 5, 5]
    assert np.bincount(small["test_labels"]).tolist() == [4, 4, 4]
    assert (small["test_images"] >= 100).all()
    held = subset.part(arrays, Data("x.npz", train_per_class=5, test_per_class=4, held_out=True))
    assert (held["train_images"] == small["train_images"]).all()
    assert np.bincount(held["test_labels"]).tolist() == [4, 4, 4]
    assert not set(held["train_images"].ravel()) & set(held["test_images"].ravel())
    assert (held["test_images"] < 100).all()
    with pytest.raises(UserError, match="class 0 has 20 images"):
        subset.part(arrays, Data("x.npz", train_per_class=21))
