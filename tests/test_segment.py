"""Segmentation: images and masks cut alike, mean IoU against scikit-learn, and a journey."""

import collections

import jax
import numpy as np
import pytest
from helpers.segmentation import opened, small_run
from helpers.untrained import made
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import batches, segment
from maskcl_jax.evaluate import segmentation_data as segmentation
from maskcl_jax.models.heads import Segmenter

COUNT = 23


def write_folders(root, *, size=(24, 30)) -> tuple[str, ...]:
    """COUNT pictures whose red is 60 times the class, with masks; one picture without. The overrides for them."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(COUNT):
        mask = np.ones(size, np.uint8)
        top, left = rng.integers(0, 12, 2)
        mask[top : top + 10, left : left + 14] = 2 + i % 2
        image = np.zeros((*size, 3), np.uint8)
        image[..., 0] = 60 * mask
        mask[:2] = 255
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    Image.new("RGB", size).save(root / "images" / "alone.png")
    return (f"data.path={root}/images", f"mask_path={root}/masks", "first_label=1")


@pytest.fixture(scope="module")
def run():
    return small_run()


def test_masks_go_where_their_images_go(run, tmp_path):
    """Away from edges, where the image blends two classes, red tells the class."""
    pairs = opened(run, tmp_path, *write_folders(tmp_path)).source
    assert pairs.num_classes == 3
    feed = pairs.train_batches(batch_size=8, start=0, process_index=0, process_count=1)
    seen = 0
    for batch in (next(feed), next(feed)):
        red, classes = batch["image"][..., 0].astype(int), batch["mask"]
        flat = (classes >= 0) & (np.abs(red % 60 - 30) > 28)  # a multiple of 60, nearly
        agree = np.round(red / 60) - 1 == classes
        assert agree[flat].mean() > 0.97  # nearest and bilinear differ by a pixel at edges
        seen += flat.sum()
    feed.close()
    assert seen > 1000


def test_the_whole_journey_counts_each_test_image_once(run, tmp_path):
    s = opened(run, tmp_path, *write_folders(tmp_path), protocol="segment:decoder")
    (entry,) = segment.run_segment(s)["entries"]
    assert (entry["n_train"], entry["n_test"], entry["classes"]) == (21, 2, 3)
    assert 0 <= entry["miou"] <= 1


def class_counts(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(3, C): of each class the pixels labeled so, predicted so, and both."""
    matrix = confusion_matrix(true.ravel(), predicted.ravel(), labels=range(classes))
    return np.stack([matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)])


def test_mean_iou_is_scikit_learns():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    predicted[:250] = true[:250]
    found = segment.scores(class_counts(true, predicted, 5))
    assert found["miou"] == pytest.approx(jaccard_score(true, predicted, average="macro"))
    assert found["iou"][4] is None
    assert found["pixel_accuracy"] == pytest.approx((true == predicted).mean())


def test_only_counted_pixels_are_counted(run, tmp_path):
    s = opened(run, tmp_path, *write_folders(tmp_path))
    head = segment.Segmentation(s, batches.Budget(21, 8, 3, 2))
    state = jax.jit(head.new_state)(jax.random.key(0), s.encoder.variables)
    feed = s.source.eval_batches("test", batch_size=8, process_index=0, process_count=1)
    batch = next(feed)
    feed.close()
    pixels = head.count(state, [batch])
    assert len(pixels) == batch["valid"].sum() == 2
    features = s.encoder.feature_map(s.encoder.variables, batch["image"])
    model = {"params": state["params"]["head"], "batch_stats": state["stats"]["head"]}
    predicted = np.asarray(head.model.apply(model, features, (16, 16), train=False).argmax(axis=-1))
    for image, mask in enumerate(batch["mask"][batch["valid"]]):
        assert (pixels[image] == class_counts(mask[mask >= 0], predicted[image][mask >= 0], 3)).all()


@pytest.mark.parametrize("name", ["mae", "moco_v2"])
def test_an_encoder_that_is_not_frozen_is_trained_with_the_head(name, tmp_path):
    """One step of SGD follows the gradient of the loss as it is written here, and the moved encoder is tested."""
    fields = {
        "mae": {"model.patch_size": 4},
        # A batch, and its groups, of more images than a batch of this evaluation has.
        "moco_v2": {"model.stages": (1, 1), "batch_size": 32, "method.bn_group_size": 32, "method.queue_size": 32},
    }
    other = made(name, **{"data.image_size": (16, 16)} | fields[name])
    sgd = ("optimizer.name=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0", "optimizer.warmup_epochs=0")
    s = opened(other, tmp_path, *write_folders(tmp_path), "frozen=False", *sgd, "optimizer.base_lr=3.2")
    trainer = segment.Segmentation(s, batches.Budget(21, 8, 3, 2))  # the rate is 3.2 * 8 / 256 = 0.1
    state = jax.jit(trainer.new_state)(jax.random.key(0), s.encoder.variables)
    feed = s.source.train_batches(batch_size=8, start=0, process_index=0, process_count=1)
    batch = next(feed)
    feed.close()

    def loss(encoder):
        images, module = s.encoder.preprocess(batch["image"]), s.encoder.module
        old, statistics = state["stats"]["encoder"], {}
        if name == "moco_v2":
            features, statistics = module.apply(
                {"params": encoder, "batch_stats": old}, images, train=True, mutable=["batch_stats"]
            )
        else:
            features = module.apply({"params": encoder}, images)[:, 1:].reshape(8, 4, 4, -1)
        head = {"params": state["params"]["head"], "batch_stats": state["stats"]["head"]}
        logits, _ = trainer.model.apply(head, features, (16, 16), train=True, mutable=["batch_stats"])
        picked = jax.nn.log_softmax(logits)[batch["mask"] >= 0]
        right = batch["mask"][batch["mask"] >= 0]
        return -picked[np.arange(len(right)), right].mean(), statistics

    (value, statistics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state["params"]["encoder"])
    new, metrics = jax.jit(trainer.step)(state, s.encoder.variables, batch, 0)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"]["encoder"], gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new["params"]["encoder"], expected)
    moved = statistics.get("batch_stats", {})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new["stats"]["encoder"], moved)
    # What is counted does not depend on the encoder that the run has.
    nothing = jax.tree.map(np.zeros_like, s.encoder.variables)
    tested = batch | {"valid": np.ones(8, bool)}
    found = (trainer.count_batch(new, variables, tested)[0] for variables in (s.encoder.variables, nothing))
    np.testing.assert_array_equal(*found)


def test_the_decoder_draws_finer_than_the_patches():
    for kind in ("linear", "decoder"):
        model = Segmenter(kind=kind, num_classes=5, width=8)
        shape = jax.eval_shape(
            lambda model=model: model.init_with_output(
                jax.random.key(0), np.zeros((2, 4, 3, 16)), (32, 24), train=True
            )[0]
        )
        assert shape.shape == (2, 32, 24, 5)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ("mask_path=nowhere", "mask_path='nowhere'"),
        ("classes=2", "classes=2"),
        ("first_label=9", "first_label=9"),
        ("head=upernet", "head='upernet'"),
        ("data.exif=True", "data.exif=True: images and masks are compared as they are stored"),
    ],
)
def test_what_cannot_be_segmented(run, tmp_path, change, culprit):
    overrides = write_folders(tmp_path)
    with pytest.raises(UserError, match=culprit):
        segment.run_segment(opened(run, tmp_path, *overrides, change))


def test_a_mask_of_another_size_is_named(run, tmp_path):
    overrides = write_folders(tmp_path)
    for path in (tmp_path / "masks").glob("*.png"):
        Image.fromarray(np.tile(np.array([1, 2, 3], np.uint8), (9, 3))).save(path)
    with pytest.raises(UserError, match="must be equal"):
        segment.run_segment(opened(run, tmp_path, *overrides))


def rewrite_masks(root, change, ending=".png", count=COUNT, **options) -> None:
    """Replaces the last `count` masks by what `change` makes of their values."""
    for path in sorted((root / "masks").iterdir(), key=lambda path: int(path.stem))[COUNT - count :]:
        mask = np.asarray(Image.open(path))
        path.unlink()
        Image.fromarray(change(mask)).save(path.with_suffix(ending), **options)


def colored(mask):
    return np.array([[0, 0, 0], [0, 128, 0], [0, 0, 128], [0, 128, 128]], np.uint8)[mask % 4]


def transparent(mask):
    return np.stack([mask, mask, mask, 255 * (mask % 2)], axis=-1).astype(np.uint8)


def gray(mask):
    return np.stack([mask] * 3, axis=-1)


@pytest.mark.parametrize(
    ("change", "ending", "options", "words"),
    [
        (colored, ".png", {}, r"mask of 3 colors \(\(0, 0, 128\), \(0, 128, 0\)"),
        (transparent, ".png", {}, r"mask of 3 colors"),
        (lambda mask: mask, ".jpg", {"quality": 100}, "mask in JPEG, which changes values"),
        (gray, ".webp", {"quality": 90}, "mask in WEBP"),
        (gray, ".tif", {"compression": "jpeg"}, "mask in JPEG inside TIFF, which changes values"),
        (gray, ".webp", {"quality": 90, "icc_profile": b"VP8L" * 20}, "mask in WEBP, which changes values"),
        (lambda mask: mask / np.float32(2), ".tiff", {}, r"fractions, from 0\.5 to 127\.5"),
        (lambda mask: np.full_like(mask, 255), ".png", {}, "train masks show no class.*values are 255;.*ignore=255"),
        (lambda mask: np.minimum(mask, 1), ".png", {}, "train masks show the class of value 1 only.*two are needed"),
        (lambda mask: np.where(mask > 1, 255, mask * 0), ".png", {}, "train masks show no class.*values are 0, 255"),
    ],
)
def test_masks_that_would_measure_nothing_are_refused(run, tmp_path, change, ending, options, words, monkeypatch):
    overrides = write_folders(tmp_path)
    rewrite_masks(tmp_path, change, ending, **options)
    monkeypatch.setattr(segmentation, "find_images", lambda root: sorted(root.iterdir()))  # whatever its ending
    with pytest.raises(UserError, match=words) as caught:
        opened(run, tmp_path, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "ending", "options"),
    [
        (gray, ".png", {}),
        (gray, ".webp", {"lossless": True}),
        (gray, ".webp", {"lossless": True, "icc_profile": bytes(500)}),
        (gray, ".webp", {"lossless": True, "save_all": True, "append_images": [Image.new("RGB", (30, 24))]}),
        (gray, ".tif", {"compression": "tiff_lzw"}),
        (lambda mask: mask.astype(np.uint16), ".png", {}),
        (lambda mask: np.stack([mask, mask, mask, np.full_like(mask, 255)], axis=-1), ".png", {}),
    ],
)
def test_masks_in_other_clothes_are_the_same_masks(run, tmp_path, change, ending, options):
    overrides = write_folders(tmp_path)
    expected = opened(run, tmp_path, *overrides).source
    rewrite_masks(tmp_path, change, ending, **options)
    pairs = opened(run, tmp_path, *overrides).source
    assert pairs.values == expected.values
    assert pairs.description == expected.description


def test_a_new_pair_leaves_the_others_where_they_are(run, tmp_path):
    """A tenth is held out by name, as of folders with labels, and not by place."""
    overrides = write_folders(tmp_path)

    def held_out():
        splits = opened(run, tmp_path, *overrides).source.splits
        assert not {*splits["train"]} & {*splits["test"]}
        return {image for image, _ in splits["test"]}, sum(map(len, splits.values()))

    before, count = held_out()
    assert (len(before), count) == (2, COUNT)
    for folder in ("images", "masks"):
        (tmp_path / folder / "0a.png").write_bytes((tmp_path / folder / "0.png").read_bytes())
    after, count = held_out()
    assert (len(after), count) == (2, COUNT + 1)
    assert before == after or after - before == {f"{tmp_path}/images/0a.png"}


def test_folders_of_several_splits_are_refused(run, tmp_path):
    overrides = write_folders(tmp_path)
    for folder in ("images", "masks"):
        for i in range(COUNT):
            path = tmp_path / folder / f"{i}.png"
            to = tmp_path / folder / ("val" if i < 5 else "train") / path.name
            to.parent.mkdir(exist_ok=True)
            path.rename(to)
    (tmp_path / "images" / "alone.png").unlink()
    splits = {folder: f"{tmp_path}/{folder}/train" for folder in ("images", "masks")}
    test = f"and data.test_path={tmp_path}/images/val"
    with pytest.raises(UserError, match=f"splits, not classes: set data.path={splits['images']} {test}"):
        opened(run, tmp_path, *overrides)
    with pytest.raises(UserError, match=f"splits, not classes: set mask_path={splits['masks']}"):
        opened(run, tmp_path, *overrides, f"data.path={splits['images']}")
    found = opened(run, tmp_path, *overrides, f"data.path={splits['images']}", f"mask_path={splits['masks']}").source
    assert found.num_examples("train") + found.num_examples("test") == COUNT - 5


def test_the_values_of_the_masks_and_what_is_ignored_are_printed(run, tmp_path):
    overrides = write_folders(tmp_path)
    pairs = opened(run, tmp_path, *overrides).source
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "masks").iterdir()]
    fraction = np.mean([mask == 255 for mask in masks])
    assert 0.05 < fraction < 0.1
    assert pairs.ignored("train") == pytest.approx(fraction)
    assert "1 file without a partner not used" in pairs.description
    assert "3 classes of pixels; values in the masks: 1-3, 255 (train), 1, 3, 255 (test)" in pairs.description
    assert f"not counted: {fraction:.1%} of the training pixels, {fraction:.1%} of the test pixels" in pairs.description
    assert segmentation.ranges(collections.Counter(range(0, 40, 2))).endswith("14, and 12 more, 20 in all"[4:])


def test_a_test_split_of_one_class_is_refused_before_anything_is_trained(run, tmp_path):
    overrides = write_folders(tmp_path)
    for folder in ("images", "masks"):
        (tmp_path / f"test_{folder}").mkdir()
        for i in range(3):
            path = tmp_path / folder / f"{i}.png"
            path.rename(tmp_path / f"test_{folder}" / path.name)
    for i in range(3):
        Image.new("L", (30, 24), 2).save(tmp_path / "test_masks" / f"{i}.png")
    test = (f"data.test_path={tmp_path}/test_images", f"test_mask_path={tmp_path}/test_masks")
    with pytest.raises(UserError, match="test masks show the class of value 2 only"):
        opened(run, tmp_path, *overrides, *test)


def test_masks_are_read_by_as_many_threads_as_data_threads_says(run, tmp_path, monkeypatch):
    asked, pool = [], segmentation.concurrent.futures.ThreadPoolExecutor

    def counted(workers, *rest, **options):
        asked.append(workers)
        return pool(workers, *rest, **options)

    monkeypatch.setattr(segmentation.concurrent.futures, "ThreadPoolExecutor", counted)
    pairs = opened(run, tmp_path, *write_folders(tmp_path), "data.threads=3").source
    feed = pairs.eval_batches("test", batch_size=8, process_index=0, process_count=1)
    next(feed)
    feed.close()
    assert asked.count(3) == 3  # two splits are looked through, one is read


def test_an_empty_file_is_called_empty(run, tmp_path):
    overrides = write_folders(tmp_path)
    (tmp_path / "masks" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"masks/0\.png is empty \(0 bytes\)"):
        opened(run, tmp_path, *overrides)
    (tmp_path / "masks" / "0.png").unlink()
    (tmp_path / "images" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"images/1\.png is empty \(0 bytes\)"):
        segment.run_segment(opened(run, tmp_path, *overrides))


def test_an_encoder_whose_features_are_all_equal_is_refused(run, tmp_path):
    s = opened(run, tmp_path, *write_folders(tmp_path))
    collapsed = jax.tree.map(np.zeros_like, s.encoder.variables)
    with pytest.raises(UserError, match="features of all 2 test images are equal"):
        segment.run_segment(s._replace(encoder=s.encoder._replace(variables=collapsed)))


def test_scores_need_two_classes():
    with pytest.raises(UserError, match="are of 1 class;"):
        segment.scores(np.array([[6, 0], [5, 1], [5, 0]]))
    with pytest.raises(UserError, match="are of 0 classes"):
        segment.scores(np.zeros((3, 2)))
