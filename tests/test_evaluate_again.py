"""An evaluation that is started again: of other data, damaged, at once with another; and outputs that mean nothing."""

import shutil

import jax
import numpy as np
import pytest
from helpers.labeled import Degenerate
from helpers.processes import holder
from helpers.untrained import made, save_run
from PIL import Image

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import finetune, fit, linear, segment, session, settings
from maskcl_jax.evaluate.evaluation import evaluate
from maskcl_jax.evaluate.segmentation_data import open_pairs
from maskcl_jax.training import checkpoint, checkpoint_metadata, monitor, sharding

TRAIN, TEST = [0, 1, 2, 0] * 8, [0, 1, 2, 0, 1, 2]
OVERRIDES = {
    "linear": ("feature=pixels", "total_steps=2", "batch_size=16", "factors=1", "holdout=0", "eval_batch_size=8"),
    "finetune": ("total_steps=2", "batch_size=16", "eval_batch_size=8"),
    "segment": ("total_steps=2", "batch_size=4", "eval_batch_size=2", "width=8", "frozen=False"),
    "features": ("feature=pixels", "split=train", "batch_size=8", "pictures=0"),
    "knn": ("feature=pixels", "k=8", "batch_size=8"),
    "logistic": ("feature=pixels", "batch_size=8"),
}
TRAINED = {"linear": linear, "finetune": finetune, "segment": segment}


@pytest.fixture(scope="module")
def run():
    """Of 8x8 grey images."""
    return made("mae", **{"data.image_size": (8, 8), "data.channels": 1, "model.patch_size": 4})


@pytest.fixture
def workdir(run, tmp_path):
    save_run(tmp_path / "run", run)
    return tmp_path / "run"


def write_pairs(folder, count, shift=0):
    """Images and masks of two classes."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16)).astype(np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{i}.png")
        mask = np.zeros((16, 16), np.uint8)
        mask[: 4 + (i + shift) % 5] = 1
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")


@pytest.fixture
def start(workdir, tmp_path, monkeypatch):
    """Evaluates: start(protocol, training labels, test labels)."""

    def start(protocol, train=TRAIN, test=TEST, more=()):
        monkeypatch.setattr(session, "open_source", lambda data: Degenerate(train, test))
        overrides = OVERRIDES[protocol] + tuple(more)
        if protocol != "segment":
            return evaluate(str(workdir), protocol, overrides=overrides)
        write_pairs(tmp_path / "data", len(train), shift=train[0])
        folders = (f"data.path={tmp_path}/data/images", f"mask_path={tmp_path}/data/masks")
        return evaluate(str(workdir), protocol, data="folder", overrides=(*overrides, *folders))

    return start


@pytest.fixture
def trained(monkeypatch):
    """Grows by one with every batch that is trained on."""
    push, trained = fit.Meter.push, []

    def counted(self, *arguments):
        trained.append(1)
        return push(self, *arguments)

    monkeypatch.setattr(fit.Meter, "push", counted)
    return trained


@pytest.mark.parametrize(
    ("protocol", "before", "after"),
    [
        ("linear", "32 training images, 3 classes, batches of 16, 2 steps", "9 training images, 3 classes"),
        ("segment", "29 training images, 2 classes, batches of 4, 2 steps", "36 training images, 2 classes"),
        ("features", "32 training images, 3 classes", "9 training images, 3 classes"),
    ],
    ids=["linear", "segment", "features"],
)
def test_other_data_are_refused_with_both_figures(start, trained, protocol, before, after):
    (first,) = start(protocol) or [None]
    trained.clear()
    (again,) = start(protocol) or [None]
    assert not trained  # the same data: nothing is left to train
    if first:
        assert again["values"]["entries"][0].items() >= first["values"]["entries"][0].items()
    if protocol != "segment":
        start(protocol, test=[*TEST, 1])  # the images that are trained on are the same
    other = [1, *TRAIN[1:]]
    with pytest.raises(UserError, match=rf"other data.*as many \({before}.*\), with other .*remove") as caught:
        start(protocol, other)
    assert "\n" not in str(caught.value)
    more = TRAIN[:9] if protocol != "segment" else [*TRAIN, *TRAIN[:8]]
    with pytest.raises(UserError, match=rf"other data.* \({before}.* there, {after}.* here\).*: .*remove"):
        start(protocol, more)
    assert not trained


@pytest.mark.parametrize("protocol", ["linear", "features"])
def test_other_weights_at_the_same_step_are_refused(run, workdir, start, protocol):
    """Of a run that was started again in the same folder."""
    start(protocol)
    params = jax.tree.map(lambda leaf: leaf + 1, run.state.params)
    shutil.rmtree(workdir / "checkpoints")
    save_run(workdir, run._replace(state=run.state.replace(params=params)))
    with pytest.raises(UserError, match=r"other .*\(the weights of the encoder are others\): .*remove"):
        start(protocol)


def test_a_moved_folder_of_masks_has_the_same_facts_and_other_masks_others(start, tmp_path):
    def facts(folder, **options):
        write_pairs(folder, 12, **options)
        overrides = (f"data.path={folder}/images", f"mask_path={folder}/masks")
        (chosen,) = settings.create("segment", made("mae").config, data="folder", overrides=overrides)
        return open_pairs(chosen).facts()

    first = facts(tmp_path / "a")
    assert (first["train"], first["test"], first["classes"]) == (11, 1, 2)
    assert facts(tmp_path / "b") == first != facts(tmp_path / "c", shift=1)


def test_an_evaluation_without_facts_says_so(start, monkeypatch, capsys):
    """As earlier versions left it."""
    with monkeypatch.context() as patched:
        save = checkpoint.Checkpoints.save
        patched.setattr(checkpoint.Checkpoints, "save", lambda self, step, state, *rest: save(self, step, state))
        start("linear")
    start("linear")
    assert "does not say of which data it is" in capsys.readouterr().out


def test_an_evaluation_with_a_damaged_checkpoint_starts_from_step_0(workdir, start, trained, capsys):
    (first,) = start("linear")
    assert len(trained) == 2
    (folder,) = workdir.glob("evaluate/*/checkpoints/2")
    (folder / checkpoint_metadata.FILE).write_bytes(b"")
    (again,) = start("linear")
    assert len(trained) == 4
    assert again["values"] == first["values"]
    out = capsys.readouterr().out
    assert (
        "checkpoints/2 is damaged (its _CHECKPOINT_METADATA is empty): there is none before it, so this starts from "
        "step 0" in out
    )
    assert "resumed" not in out


def test_two_equal_evaluations_at_once_are_one_and_a_refusal(workdir, start):
    start("linear")
    (record,) = workdir.glob("evaluate/linear-*.json")
    with holder(record.with_name(f".{record.stem}.lock")) as other:
        words = f"the files of .*/{record.stem} are being written by another process, process {other.pid} on .*: wait"
        with pytest.raises(UserError, match=words):
            start("linear")
        start("linear", more=("seed=1",))  # another one is not locked
    start("linear")


def test_embeddings_are_locked_where_they_go(workdir, start, tmp_path):
    place = tmp_path / "elsewhere"
    place.mkdir()
    with (
        holder(place / ".mine.lock"),
        pytest.raises(UserError, match="elsewhere/mine are being written by another process"),
    ):
        start("features", more=(f"out={place}/mine.npz",))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not writable"):
        start("features", more=(f"out={tmp_path}/file/mine.npz",))


def filled_with(value):
    """`fit`, every parameter a constant."""

    def fitted(session, trainer, budget, batches):
        state = trainer.new_state(jax.random.key(0), session.encoder.variables)
        for name in {"params", "average", "heads"} & state.keys():
            state[name] = jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), state[name])
        return state

    return fitted


@pytest.mark.parametrize("protocol", TRAINED)
def test_outputs_that_are_not_finite_are_no_figure(start, monkeypatch, protocol):
    monkeypatch.setattr(TRAINED[protocol], "fit", filled_with(np.nan))
    with pytest.raises(UserError, match=r"measures nothing on .*outputs are not finite.*lower optimizer\.base_lr"):
        start(protocol)


@pytest.mark.parametrize("protocol", TRAINED)
def test_a_constant_prediction_is_said(start, monkeypatch, capsys, protocol):
    monkeypatch.setattr(TRAINED[protocol], "fit", filled_with(0.0))
    start(protocol)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    what = r"counted test pixels" if protocol == "segment" else "6 test images"
    assert len(lines) == 1 and f"{what} are predicted as class number 0" in lines[0]


@pytest.mark.parametrize("protocol", ["knn", "logistic"])
def test_a_constant_prediction_of_frozen_features_is_said(start, capsys, protocol):
    labels = [2] * 7 + [1] if protocol == "knn" else [2] * 31 + [1]
    start(protocol, labels, more=("C=1e-6",) if protocol == "logistic" else ())
    assert "6 test images" in (out := capsys.readouterr().out) and "are predicted as class number 2" in out


def test_a_head_that_has_diverged_is_not_chosen(start, monkeypatch):
    """Images of the classes 0, 0, 0, ... are classified best by a head whose outputs are all NaN: its argmax is 0."""
    fitted = filled_with(0.0)

    def one_diverged(*arguments):
        state = fitted(*arguments)
        state["heads"]["kernel"][0] = np.nan
        state["heads"]["bias"][1, 1] = 1.0  # always class 1
        return state

    monkeypatch.setattr(linear, "fit", one_diverged)
    labels = [0] * 30 + [1] * 10
    (record,) = start("linear", labels, more=("factors=1,2", "holdout=0.5"))
    (entry,) = record["values"]["entries"]
    assert entry["base_lr"] == 2 * record["settings"]["optimizer.base_lr"]
    assert entry["accuracy"] == TEST.count(1) / len(TEST)


def test_a_run_says_once_which_images_have_no_label(run, tmp_path):
    said = []
    source = Degenerate([0, 1, 2, -1], [0, 1, -1, -1, -1])
    where = {"source": source, "method": run.method, "mesh": sharding.create_mesh()}
    online = monitor.Monitor(run.config, str(tmp_path), **where, say=said.append)
    for _ in range(2):
        assert online.classify(run.state)
    assert said.count("k-NN: 25.0% of the train images have no label and do not count") == 1
    assert said.count("k-NN: 60.0% of the test images have no label and do not count") == 1
